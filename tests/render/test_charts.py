"""Charts show what broke, claim nothing over it, and leave no cell out that was measured."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.traces import LayerTrace, Section
from precheck.render.parts.charts import charts, lines
from tests import hand_made
from tests.judge import stories

if TYPE_CHECKING:
    from precheck.records.report import Measurements, Report
    from precheck.records.traces import Headroom, RunTrace
    from precheck.render.parts.charts.chart import Chart

BROKEN = hand_made.qwen2_eager()
SIZES, ERRORS, HEADROOM = (
    "Largest value after each decoder layer",
    "Error after each decoder layer",
    "Headroom in float16 in each decoder layer",
)


def drawn(measurements: Measurements) -> dict[str, Chart]:
    return {chart.title: chart for chart in charts(judged(measurements))}


def judged(measurements: Measurements) -> Report:
    return judge(measurements, version="0.1.0")


def elements(chart: Chart, tag: str) -> list[ET.Element]:
    root = ET.fromstring(chart.svg)  # noqa: S314  drawn here
    return [element for element in root.iter() if element.tag.endswith(f"}}{tag}")]


def written(chart: Chart) -> list[str]:
    """The texts that stand in the drawing."""
    return [element.text for element in elements(chart, "text") if element.text]


def told(chart: Chart) -> list[str]:
    """What the marks tell when they are pointed at."""
    return [element.text or "" for element in elements(chart, "title")]


def with_runs(measurements: Measurements, **layers: tuple[LayerTrace, ...]) -> Measurements:
    return replace(
        measurements,
        runs=tuple(
            replace(run, layers=layers.get(run.dtype, run.layers)) for run in measurements.runs
        ),
    )


def test_the_value_that_broke_a_run_is_on_the_chart_and_in_its_words() -> None:
    chart = drawn(BROKEN)[SIZES]
    assert "attention scores 231,000" in written(chart)
    assert "float16 + eager: attention scores 231,000" in told(chart)
    assert (
        "17.6; float16 can represent that. "
        "float16 + eager breaks inside decoder layer 3 (diamond): "
        "the raw attention scores (QK^T before scaling), 231,000." in chart.summary
    )


def test_a_sound_model_has_no_culprit() -> None:
    chart = drawn(hand_made.measurements())[SIZES]
    assert (
        chart.summary
        == "The largest value after any decoder layer is 17.6; float16 can represent that."
    )
    assert not [text for text in told(chart) if "attention scores" in text]


def test_the_highest_mark_is_inside_the_drawing() -> None:
    chart = drawn(BROKEN)[SIZES]
    (diamond,) = [
        element
        for element in elements(chart, "path")
        if any("attention scores" in (each.text or "") for each in element)
    ]
    x, y = map(
        float, re.findall(r"translate\(([\d.]+),([\d.-]+)\)", diamond.get("transform", ""))[0]
    )
    assert 0 < y < 100, "above the line where float16 ends, below the upper edge"
    assert 250 < x < 330, "in layer 3 of 0 to 5"


def test_what_is_left_beside_nan_is_no_largest_value() -> None:
    trace = hand_made.layers(nan_from=3)
    leftover = tuple(replace(layer, abs_max=1.5) for layer in trace)
    rest = drawn(with_runs(BROKEN, float16=leftover))[SIZES]
    assert [text for text in told(rest) if "float16" in text and text.endswith(": 1.50")] == [
        f"decoder layer {layer}, float16 + {attn}: 1.50"
        for attn in ("sdpa", "eager")
        for layer in range(3)
    ]
    assert "decoder layer 3, float16 + eager: not finite" in told(rest)


def test_layers_that_only_broken_runs_came_to_are_on_the_axis() -> None:
    short = tuple(
        replace(run, layers=run.layers[: 6 if run is BROKEN.runs[3] else 3]) for run in BROKEN.runs
    )
    chart = drawn(replace(BROKEN, runs=short))[SIZES]
    assert written(chart)[:6] == ["0", "1", "2", "3", "4", "5"]
    assert "decoder layer 5, float16 + eager: not finite" in told(chart)


def test_an_overflow_in_another_part_is_told_beside_every_chart() -> None:
    row = hand_made.scores_overflow(section=Section.HEAD, layer=None, mechanism=Mechanism.LOGITS)
    runs = (*BROKEN.runs[:3], replace(BROKEN.runs[3], overflows=(row,)), *BROKEN.runs[4:])
    chart = drawn(replace(BROKEN, runs=runs))[SIZES]
    assert "float16 + eager breaks outside the layers: the logits, 231,000." in chart.summary
    assert "diamond" not in chart.summary


def test_an_absorbed_overflow_is_marked_as_such() -> None:
    row = hand_made.scores_overflow(absorbed=True)
    run = replace(BROKEN.runs[3], overflows=(row,), reaches_output=False, layers=hand_made.layers())
    chart = drawn(replace(BROKEN, runs=(*BROKEN.runs[:3], run, *BROKEN.runs[4:])))[SIZES]
    assert "float16 + eager absorbs an overflow inside decoder layer 3" in chart.summary
    assert "attention scores 231,000, absorbed" in written(chart)


@pytest.mark.parametrize("measured", [BROKEN, hand_made.measurements()], ids=["broken", "sound"])
def test_every_measured_mechanism_has_its_cell(measured: Measurements) -> None:
    """One for each mechanism and layer, also where a run had stopped before."""
    stopped = tuple(
        replace(row, headroom_bits=without_float16(row))
        if (row.layer or 0) > 3
        and row.mechanism is Mechanism.ATTENTION_SCORES
        and measured is BROKEN
        else row
        for row in measured.headroom
    )
    chart = drawn(replace(measured, headroom=stopped))[HEADROOM]
    cells = [text for text in told(chart) if "bits" in text]
    assert len(cells) == len({(row.mechanism, row.layer) for row in measured.headroom})
    predicted = [text for text in cells if text.endswith("would be left")]
    assert len(predicted) == (2 if measured is BROKEN else 0)
    assert written(chart).count("(12.8)") == len(predicted)
    assert ("In parentheses" in chart.summary) == bool(predicted)


def without_float16(row: Headroom) -> dict[str, float]:
    return {dtype: left for dtype, left in row.headroom_bits.items() if dtype != Dtype.FLOAT16}


def test_what_runs_in_float32_stays_blank() -> None:
    """No run has broken: the operation is not in float16 there, and has nothing left to lose."""
    sound = hand_made.measurements()
    kept = tuple(
        replace(row, headroom_bits=without_float16(row))
        if row.layer == 4 and row.mechanism is Mechanism.RESIDUAL
        else row
        for row in sound.headroom
    )
    cells = [
        text for text in told(drawn(replace(sound, headroom=kept))[HEADROOM]) if "bits" in text
    ]
    assert len(cells) == len(kept) - 1
    assert not [text for text in cells if text.startswith("model.layers.4, residual")]


def test_labels_of_many_layers_do_not_touch() -> None:
    rows = tuple(replace(row, layer=layer) for row in BROKEN.headroom[:4] for layer in range(80))
    found = written(drawn(replace(BROKEN, headroom=rows))[HEADROOM])
    layers, legend = {str(5 * number) for number in range(16)}, {"0", "1", "4"}
    assert {text for text in found if text.isdecimal()} == layers | legend
    assert not [text for text in found if "." in text], "no cell has room for its number"


def test_of_two_rows_in_one_cell_the_tighter_one_is_shown() -> None:
    twice = (
        *BROKEN.headroom,
        replace(BROKEN.headroom[0], abs_max=1.0, headroom_bits={"float16": 16.0}),
    )
    chart, again = drawn(BROKEN)[HEADROOM], drawn(replace(BROKEN, headroom=twice))[HEADROOM]
    assert written(again) == written(chart)


def test_what_is_tightest_outside_the_layers_is_told() -> None:
    head = replace(
        BROKEN.headroom[0],
        module="lm_head",
        layer=None,
        section=Section.HEAD,
        mechanism=Mechanism.LOGITS,
        abs_max=4e5,
        headroom_bits={"float16": -2.6},
    )
    chart = drawn(replace(BROKEN, headroom=(*BROKEN.headroom, head)))[HEADROOM]
    assert "Outside the layers less is left: lm_head, logits" in chart.summary
    assert "Outside" not in drawn(BROKEN)[HEADROOM].summary


def tower(run: RunTrace, *, num_layers: int) -> RunTrace:
    layers = [replace(layer, section=Section.VISION) for layer in run.layers[:num_layers]]
    return replace(run, layers=(*run.layers, *layers))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_part_with_one_layer_has_no_line_and_three_have_three_ticks(num_layers: int) -> None:
    runs = tuple(tower(run, num_layers=num_layers) for run in BROKEN.runs)
    found = drawn(replace(BROKEN, runs=runs))
    titles = {"Largest value after each vision layer", "Error after each vision layer"}
    assert titles & set(found) == (titles if num_layers > 1 else set())
    for title in titles & set(found):
        assert written(found[title])[:4] == ["0", "1", "2", "vision layer"]


def test_the_legend_names_only_what_is_drawn() -> None:
    assert not [text for text in written(drawn(BROKEN)[ERRORS]) if text.startswith("float32")]
    assert "float32 + sdpa" in written(drawn(BROKEN)[SIZES])


@pytest.mark.parametrize("size", [1e-300, 1e300, 1.0])
def test_any_size_can_be_drawn(size: float) -> None:
    layers = tuple(replace(layer, abs_max=size) for layer in hand_made.layers())
    assert drawn(with_runs(BROKEN, float32=layers))[SIZES].svg.startswith("<svg")


def test_charts_of_every_story_are_drawn() -> None:
    for measured in (stories.gemma3(), stories.llama_product(), stories.qwen2()):
        assert SIZES in drawn(measured)
    assert drawn(stories.static()) == {}


@pytest.mark.parametrize("top", [-3.0, 0.0, 5e-324, 1.7e308])
@pytest.mark.parametrize("sizes", [[], [0.0], [-1.0, 2.0], [5e-324], [1.7e308]])
def test_no_saved_size_breaks_the_scale(sizes: list[float], top: float) -> None:
    low, high = lines.domain(sizes, top=top)
    assert 0 < low <= high
    assert lines.ticks(low, high)
