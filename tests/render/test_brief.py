"""The default output: about fifteen lines, each fact once, and nothing that breaks is invisible."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len

from precheck.judge import judge
from precheck.judge.gate import FailOn, gate
from precheck.records.configuration import Configuration
from precheck.records.finding import Verdict
from precheck.records.precision import Dtype
from precheck.render import render_brief
from tests import hand_made
from tests.judge import stories
from tests.render.test_console import assert_golden

if TYPE_CHECKING:
    from precheck.records.report import Measurements, Report

QWEN2 = hand_made.qwen2_eager()


def brief(
    measurements: Measurements,
    *,
    gpus: tuple[str, ...] = (),
    require: tuple[str, ...] = (),
    engine: str = "transformers",
    width: int = 100,
    colour: bool = False,
) -> str:
    return shown(
        judge(measurements, gpus=gpus, version="0.1.0"),
        require=require,
        engine=engine,
        width=width,
        colour=colour,
    )


def shown(
    report: Report,
    *,
    require: tuple[str, ...] = (),
    engine: str = "transformers",
    width: int = 100,
    colour: bool = False,
) -> str:
    required = tuple(map(Configuration.parse, require))
    outcome = gate(report, require=required, fail_on=FailOn.ERROR)
    return render_brief(report, outcome, engine=engine, width=width, colour=colour)


STORIES = {
    "qwen2-eager": (QWEN2, ()),
    "all-safe": (hand_made.measurements(), ()),
    "broken-checkpoint": (hand_made.broken_checkpoint(), ()),
    "formats": (hand_made.formats(), ()),
    "gemma3-on-t4": (stories.gemma3(), ("T4 32GB",)),
    "qwen2-on-four": (stories.qwen2(), ("T4", "V100", "A100 80GB", "Apple M2 Max")),
    "product-on-t4": (stories.llama_product(), ("T4 32GB",)),
    "static-on-t4": (stories.static(), ("T4",)),
}


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("story", list(STORIES))
def test_the_whole_output_is_as_it_was_last_approved(story: str, width: int) -> None:
    measurements, gpus = STORIES[story]
    assert_golden(brief(measurements, gpus=gpus, width=width), f"brief-{story}-{width}.txt")


@pytest.mark.parametrize("story", list(STORIES))
def test_it_is_short(story: str) -> None:
    measurements, gpus = STORIES[story]
    text = brief(measurements, gpus=gpus)
    with_formats = sum(run.configuration.has_format for run in measurements.runs)
    of_table = with_formats + 6 if with_formats else 0
    assert len(text.splitlines()) <= 20 + of_table + 4 * max(0, len(gpus) - 1)


@pytest.mark.parametrize("width", [80, 100, 120, 200])
@pytest.mark.parametrize("story", list(STORIES))
def test_nothing_but_the_command_is_wider_than_the_terminal(story: str, width: int) -> None:
    measurements, gpus = STORIES[story]
    lines = brief(measurements, gpus=gpus, width=width).splitlines()
    wide = [line for line in lines if cell_len(line) > width]
    assert all("from_pretrained(" in line or "--kv-cache-dtype" in line for line in wide)


def test_the_first_line_is_what_would_be_deployed() -> None:
    assert brief(QWEN2).startswith("✓ bfloat16 + sdpa: safe, up to ")
    assert brief(QWEN2, require=("float16+eager",)).startswith(
        "✗ float16 + eager: overflows in layer 3: "
    )
    assert brief(QWEN2, gpus=("T4",)).startswith("✗ bfloat16 + sdpa on T4: should not be used: ")
    assert brief(QWEN2, gpus=("T4",), require=("float16",)).startswith(
        "✓ float16 + sdpa on T4: safe"
    )


def test_the_first_line_and_the_gate_never_contradict_each_other() -> None:
    for measurements, gpus in STORIES.values():
        report = judge(measurements, gpus=gpus, version="0.1.0")
        outcome = gate(report, fail_on=FailOn.ERROR)
        first = shown(report)[0]
        assert (first in "✗▼") is (not outcome.holds) or first == "?"


def test_what_breaks_elsewhere_is_the_second_line() -> None:
    _, second, *_ = brief(QWEN2).splitlines()
    assert second == (
        "✗ only with eager attention: float16 overflows in layer 3, bfloat16 loses accuracy"
    )


def test_what_is_deployed_and_breaks_is_not_said_to_break_elsewhere() -> None:
    text = brief(QWEN2, require=("float16+eager", "bfloat16+eager"))
    assert "only with" not in text
    assert "elsewhere" not in text


def test_only_with_is_said_where_nothing_else_breaks() -> None:
    both = brief(QWEN2, require=("float16+eager",)).splitlines()
    assert both[1] == "✗ also: bfloat16 + eager loses accuracy" or both[2] == (
        "✗ also: bfloat16 + eager loses accuracy"
    )


def test_a_healthy_model_has_no_culprit() -> None:
    text = brief(hand_made.measurements())
    assert not re.search(r"^  (where|operation|size|why|also) ", text, flags=re.MULTILINE)
    assert "✗" not in text


def test_each_of_six_runs_has_a_line() -> None:
    report = judge(QWEN2, version="0.1.0")
    text = brief(QWEN2)
    assert len(report.runs) == 6
    for run in report.runs:
        assert len(re.findall(rf"^  \S {re.escape(run.name)}  ", text, flags=re.MULTILINE)) == 1


def test_of_more_runs_those_that_break_are_shown() -> None:
    more = tuple(
        replace(run, attn_implementation=name, requested_attn_implementation=name)
        for run in hand_made.healthy_runs()
        if run.attn_implementation == "sdpa"
        for name in ("flex_attention", "flash_attention_2")
    )
    scan = replace(QWEN2, runs=(*more, *QWEN2.runs))
    text = brief(scan)
    assert "✗ float16 + eager " in text
    assert "▼ bfloat16 + eager " in text
    assert "more configurations: -v" in text


def test_the_culprit_is_that_of_the_run_that_is_deployed() -> None:
    assert "in float16 + eager" in brief(QWEN2)
    assert "in bfloat16 + eager" in brief(QWEN2, require=("bfloat16+eager",))


def test_the_culprit_takes_three_lines() -> None:
    lines = brief(QWEN2).splitlines()
    labels = [line.split()[0] for line in lines if line.startswith("  ") and line[2].isalpha()]
    assert labels[-5:] == ["where", "operation", "size", "use", "next"]
    assert len(lines) <= 16


def test_the_size_never_looks_like_the_limit() -> None:
    row = hand_made.scores_overflow(reference_abs_max=65_540.0)
    runs = tuple(replace(run, overflows=(row,)) if run.overflows else run for run in QWEN2.runs)
    assert "1.001x float16's maximum of 65,504" in brief(replace(QWEN2, runs=runs))


def test_an_engine_gets_its_own_command() -> None:
    assert "vllm serve" in brief(stories.qwen2(), gpus=("A100",), engine="vLLM")
    assert "from_pretrained" not in brief(stories.qwen2(), gpus=("A100",), engine="vLLM")


def test_an_engine_that_cannot_is_said_to_need_another_one() -> None:
    text = brief(stories.gemma3(), gpus=("T4 32GB",), engine="SGLang")
    assert "nothing in SGLang on T4" in text


def test_without_a_gpu_an_engine_is_advised_where_it_runs() -> None:
    """The processor of this machine runs no SGLang, and nobody said which GPU."""
    assert "sglang" in brief(QWEN2, engine="SGLang")


def test_colour_adds_nothing_but_colour() -> None:
    coloured = brief(QWEN2, colour=True)
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == brief(QWEN2).splitlines()


def test_a_scan_that_was_stopped_has_no_verdict_and_no_crosses() -> None:
    runs = tuple(
        replace(run, failure="interrupted", is_finished=False, logits=None, overflows=())
        for run in hand_made.healthy_runs()
    )
    scan = replace(
        hand_made.measurements(runs=runs), complete=False, incomplete_reason="interrupted"
    )
    text = brief(scan)
    assert text.startswith("? INCOMPLETE: stopped ")
    assert "✗" not in text
    assert "✓" not in text
    assert {run.verdict for run in judge(scan, version="0").runs} == {Verdict.INCOMPLETE}


def test_text_of_the_model_does_not_act() -> None:
    row = hand_made.scores_overflow(module="\x1b[2Jmodel\n", op="a\rb", code="x\x07")
    runs = tuple(replace(run, overflows=(row,)) if run.overflows else run for run in QWEN2.runs)
    text = brief(replace(QWEN2, runs=runs))
    assert {character for character in text if not character.isprintable()} == {"\n"}


def test_a_dtype_that_was_not_measured_asks_for_what_is_deployed() -> None:
    scan = replace(QWEN2, model=replace(QWEN2.model, declared_dtype="float8_e4m3fn"))
    first = brief(scan).splitlines()[0]
    assert first.startswith("? the checkpoint would be loaded as float8_e4m3fn")
    assert Dtype.FLOAT16.value in first or "--require" in brief(scan)
