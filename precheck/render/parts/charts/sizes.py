"""How large values are after each layer, where float16 ends, and what broke."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.precision import Dtype
from precheck.records.quantities import magnitude
from precheck.render.parts.charts.chart import Chart, Row, chart
from precheck.render.parts.charts.culprits import culprit_marks, culprits, sentences
from precheck.render.parts.charts.drawing import WIDTH
from precheck.render.parts.charts.lines import encoding, layers_of, line_spec, name
from precheck.render.parts.stored_formats.groups import plain_runs

if TYPE_CHECKING:
    from precheck.records.report import Report
    from precheck.records.traces import Section

_LIMIT = Dtype.FLOAT16.limits.max


def sizes(report: Report, section: Section) -> Chart | None:
    """The chart of a part of the model; None where only runs with a format came to it."""
    layers = layers_of(plain_runs(report), section)
    if not layers:
        return None
    values, broken = _sizes(report, section), _not_finite(report, section)
    marks = [mark for mark in culprits(report) if mark.is_in(section)]
    spec = line_spec(
        plain_runs(report),
        values,
        section=section,
        title="largest value (log scale)",
        form="~s",
        top=max([_LIMIT, *(mark.size for mark in marks)]),
    )
    spec["layer"] += [
        *_limit_marks(),
        _crosses(report, broken),
        *culprit_marks(marks, layers=layers),
    ]
    largest = max((value["size"] for value in values), default=0.0)
    end = (
        "float16 can represent that"
        if largest <= _LIMIT
        else f"float16's maximum is {magnitude(_LIMIT)}"
    )
    summary = [
        f"The largest value after any {section} layer is {magnitude(largest)}; {end}.",
        *sentences(report, section),
    ]
    if broken:
        summary.append("A cross marks a layer whose output is not finite.")
    title = f"Largest value after each {section} layer"
    return chart(title, summary=" ".join(summary), spec=spec)


def _sizes(report: Report, section: Section) -> list[Row]:
    """Of layers that are finite: what is left where another token is NaN says nothing."""
    return [
        {
            "layer": layer.index,
            "run": name(run),
            "size": layer.abs_max,
            "said": f"{section} layer {layer.index}, {name(run)}: {magnitude(layer.abs_max)}",
        }
        for run in plain_runs(report)
        for layer in run.layers
        if layer.section is section and layer.abs_max and layer.is_finite
    ]


def _not_finite(report: Report, section: Section) -> list[Row]:
    return [
        {
            "layer": layer.index,
            "run": name(run),
            "size": _LIMIT,
            "said": f"{section} layer {layer.index}, {name(run)}: not finite",
        }
        for run in plain_runs(report)
        for layer in run.layers
        if layer.section is section and not layer.is_finite
    ]


def _limit_marks() -> list[Row]:
    """A line where float16 ends, and where the others do, in words: too far away to be drawn."""
    line = {"size": _LIMIT, "said": f"float16 maximum: {magnitude(_LIMIT)}"}
    highest = magnitude(Dtype.FLOAT32.limits.max)
    above = {"said": f"\N{UPWARDS ARROW} bfloat16 and float32 maximum: {highest}"}
    size = {"field": "size", "type": "quantitative"}
    return [
        {
            "data": {"values": [line]},
            "mark": {"type": "rule", "color": "var(--bad)", "strokeWidth": 2},
            "encoding": {"y": size},
        },
        {
            "data": {"values": [line]},
            "mark": {
                "type": "text",
                "baseline": "top",
                "align": "left",
                "dy": 5,
                "color": "var(--bad)",
            },
            "encoding": {"x": {"value": 4}, "y": size, "text": {"field": "said"}},
        },
        {
            "data": {"values": [above]},
            "mark": {
                "type": "text",
                "baseline": "bottom",
                "align": "right",
                "color": "var(--soft)",
            },
            "encoding": {"x": {"value": WIDTH}, "y": {"value": -6}, "text": {"field": "said"}},
        },
    ]


def _crosses(report: Report, broken: list[Row]) -> Row:
    channels = encoding(plain_runs(report))
    del channels["strokeWidth"], channels["strokeDash"]
    return {
        "data": {"values": broken},
        "mark": {
            "type": "point",
            "shape": "cross",
            "angle": 45,
            "size": 90,
            "filled": True,
            "opacity": 1,
        },
        "encoding": channels,
    }
