from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.judge.gate import FailOn, gate
from precheck.records.precision import Dtype
from precheck.records.traces import Symptom
from precheck.render import RENDERERS, Format, render_console
from precheck.render.parts.words import shown
from tests import hand_made
from tests.judge import stories
from tests.render.wide import too_wide

if TYPE_CHECKING:
    from precheck.records.report import Measurements, Report

GOLDEN = Path(__file__).parents[1] / "golden"
STORIES = {
    "qwen2-eager": hand_made.qwen2_eager(),
    "all-safe": hand_made.measurements(),
    "broken-checkpoint": hand_made.broken_checkpoint(),
    "formats": hand_made.formats(),
}
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def judged(measurements: Measurements) -> Report:
    return judge(measurements, version="0.1.0")


def plain(measurements: Measurements, *, width: int = 100, all_layers: bool = False) -> str:
    return render_console(judged(measurements), width=width, colour=False, all_layers=all_layers)


def assert_golden(text: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("PRECHECK_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, "make golden rewrites it; read the diff"


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("story", list(STORIES))
def test_the_whole_output_is_as_it_was_last_approved(story: str, width: int) -> None:
    assert_golden(plain(STORIES[story], width=width), f"{story}-{width}.txt")


GPU_STORIES = {
    "gemma3-on-t4": (stories.gemma3(), ("T4 32GB",)),
    "qwen2-on-four": (stories.qwen2(), ("T4", "V100", "A100 80GB", "Apple M2 Max")),
    "product-on-t4": (stories.llama_product(), ("T4 32GB",)),
    "static-on-t4": (stories.static(), ("T4",)),
}


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("story", list(GPU_STORIES))
def test_advice_for_gpus_is_as_it_was_last_approved(story: str, width: int) -> None:
    measured, gpus = GPU_STORIES[story]
    report = judge(measured, gpus=gpus, version="0.1.0")
    text = render_console(report, width=width, colour=False)
    assert too_wide(text, width=width) == []
    assert_golden(text, f"{story}-{width}.txt")


def test_the_text_file_is_as_it_was_last_approved() -> None:
    text = RENDERERS[Format.TABLE].render(judged(STORIES["qwen2-eager"]))
    assert_golden(text, "qwen2-eager-all-layers.txt")


def test_the_json_file_is_as_it_was_last_approved() -> None:
    assert_golden(RENDERERS[Format.JSON].render(judged(STORIES["qwen2-eager"])), "qwen2-eager.json")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("story", list(STORIES))
@pytest.mark.parametrize("all_layers", [False, True])
def test_no_line_is_wider_than_the_terminal(story: str, width: int, all_layers: bool) -> None:
    text = plain(STORIES[story], width=width, all_layers=all_layers)
    assert too_wide(text, width=width) == []


@pytest.mark.parametrize("width", [60, 80, 200])
def test_every_run_has_one_line_in_the_table(width: int) -> None:
    lines = plain(STORIES["qwen2-eager"], width=width).split("\n")
    rows = [line for line in lines if re.match(r"(b?float\d\d) +(sdpa|eager) +\S ", line)]
    assert len(rows) == 6


def test_a_long_attention_name_costs_columns_and_no_wrapping() -> None:
    name = "kernels-community/vllm-flash-attn3"
    runs = (*hand_made.healthy_runs(), hand_made.run(Dtype.FLOAT16, name))
    text = plain(hand_made.measurements(runs=runs), width=80)
    row = next(line for line in text.split("\n") if line.startswith(f"float16   {name}"))
    assert "safe" in row


def test_the_first_line_is_the_verdict() -> None:
    first = {story: plain(scan, width=80).split("\n")[0] for story, scan in STORIES.items()}
    assert first["qwen2-eager"] == (
        "✗ float16 + eager overflows in layer 3; bfloat16 + eager loses accuracy"
    )
    assert first["all-safe"] == "✓ SAFE in all 6 configurations measured, up to 512 of 2,048 tokens"
    assert first["broken-checkpoint"].startswith("✗ BROKEN: Missing from the checkpoint")


def test_how_far_was_tested_stands_beside_the_verdict() -> None:
    second = plain(STORIES["qwen2-eager"], width=80).split("\n")[1]
    assert "not tested beyond 512 tokens" in second
    assert "4 of 6 configurations can be used" in second


def test_the_culprit_and_the_symptom_are_told() -> None:
    text = plain(STORIES["qwen2-eager"], width=200)
    for part in (
        "model.layers.3.self_attn",
        "aten.bmm at modeling_qwen2.py:155",
        hand_made.CODE,
        "231,000 in float32, 3.5x float16's maximum of 65,504",
        "greedy: repeats token 0 (every logit is NaN, and argmax of NaN is index 0): !!!!!!!!",
        "probability tensor contains either `inf`, `nan` or element < 0",
        "measured on cpu, predicted for sm_75",
        'dtype=torch.float16, attn_implementation="sdpa"',
    ):
        assert part in text


def test_verdicts_are_words_and_symbols_beside_the_colour() -> None:
    report = judged(STORIES["qwen2-eager"])
    coloured = render_console(report, width=80, colour=True)
    assert "\x1b[31m✗ overflow" in coloured
    uncoloured = [line.rstrip() for line in ESCAPES.sub("", coloured).split("\n")]
    assert uncoloured == render_console(report, width=80, colour=False).split("\n")


def test_the_environment_does_not_change_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    report = judged(STORIES["qwen2-eager"])
    texts = [render_console(report, width=80, colour=colour) for colour in (False, True)]
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "33"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    assert [render_console(report, width=80, colour=each) for each in (False, True)] == texts


@pytest.mark.parametrize("colour", [False, True])
def test_what_comes_from_a_model_cannot_steer_the_terminal(colour: bool) -> None:
    evil = "[bold]x[/bold]\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202e:warning:\udc80"
    scan = hand_made.qwen2_eager()
    culprit = hand_made.scores_overflow(
        module=evil, code=evil, op=evil, source=evil, probes=(evil,)
    )
    broken = replace(
        scan.runs[3],
        attn_implementation=evil,
        overflows=(culprit,),
        symptom=Symptom(greedy=evil, sampling=evil),
    )
    failed = hand_made.run(Dtype.FLOAT16, evil, failure=evil)
    scan = replace(
        scan,
        model=replace(scan.model, id=evil, architecture=evil, revision=evil),
        checkpoint=replace(scan.checkpoint, unexpected=(evil,)),
        runs=(*scan.runs[:3], broken, *scan.runs[4:], failed),
        complete=False,
        incomplete_reason=evil,
    )
    text = render_console(judged(scan), width=400, colour=colour, all_layers=True)
    assert r"[bold]x[/bold]\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202e:warning:\udc80" in text
    left = ESCAPES.sub("", text) if colour else text
    assert all(character == "\n" or character.isprintable() for character in left)


def test_ordinary_text_is_shown_as_it_is() -> None:
    assert shown("上海 !!! [/] \u00e9 \U0001f600") == "上海 !!! [/] \u00e9 \U0001f600"


def test_only_layers_near_the_culprit_are_shown_unless_all_are_asked_for() -> None:
    near = plain(STORIES["qwen2-eager"])
    assert re.search(r"^▸ 3 +231,000 ", near, flags=re.MULTILINE)
    assert not re.search(r"^  0 ", near, flags=re.MULTILINE)
    everything = plain(STORIES["qwen2-eager"], all_layers=True)
    assert re.findall(r"^decoder (\d)", everything, flags=re.MULTILINE) == list("012345")


def test_all_layers_of_all_runs_are_shown_however_narrow() -> None:
    text = plain(STORIES["qwen2-eager"], width=40, all_layers=True)
    assert re.findall(r"^decoder (\d)", text, flags=re.MULTILINE) == list("012345") * 2


def test_lost_accuracy_alone_is_shown_with_its_layers() -> None:
    scan = hand_made.qwen2_eager()
    scan = replace(scan, runs=(*scan.runs[:3], *scan.runs[4:]))
    text = plain(scan)
    assert text.startswith("▼ bfloat16 + eager loses accuracy")
    assert "culprit" not in text
    assert re.search(r"^▸ 3 .* 31\.0%$", text, flags=re.MULTILINE)


def test_an_incomplete_scan_says_so_at_the_top() -> None:
    scan = hand_made.measurements(complete=False, incomplete_reason="interrupted in layer 12")
    head = plain(scan).split("\n")[:3]
    assert any("INCOMPLETE: interrupted in layer 12" in line for line in head)


def test_a_scan_without_a_run_is_still_shown() -> None:
    scan = hand_made.measurements(runs=(), headroom=(), complete=False)
    assert plain(scan).startswith("✗ NOTHING WAS MEASURED")


def test_little_headroom_is_the_verdict_when_nothing_is_worse() -> None:
    scan = hand_made.measurements(headroom=hand_made.headroom_rows(scores=40_000.0))
    assert plain(scan).startswith("! float16 + eager has less than one bit of headroom")


def test_a_failed_run_is_a_row_and_a_finding() -> None:
    failed = hand_made.run(
        Dtype.FLOAT16, "flash_attention_2", failure="not installed", layers=(), logits=None
    )
    text = plain(hand_made.measurements(runs=(*hand_made.healthy_runs(), failed)))
    assert re.search(r"^float16 +flash_attention_2 +✗ failed ", text, flags=re.MULTILINE)
    assert "could not be run: not installed" in text


def test_several_runs_with_one_verdict_share_its_sentence() -> None:
    row = hand_made.scores_overflow(absorbed=True)
    runs = tuple(
        replace(run, overflows=(row,)) if run.dtype is Dtype.FLOAT16 else run
        for run in hand_made.healthy_runs()
    )
    first = plain(hand_made.measurements(runs=runs)).split("\n")[0]
    assert first == "○ float16 + sdpa, float16 + eager absorb an overflow in layer 3"


def test_with_the_gate_it_begins_with_what_would_be_deployed() -> None:
    report = judged(hand_made.qwen2_eager())
    answer = gate(report, fail_on=FailOn.ERROR)
    text = render_console(report, width=100, colour=False, gate=answer)
    assert text.startswith("✓ bfloat16 + sdpa: safe, ")
    assert text.count(report.model.architecture) == 1
    below = render_console(report, width=100, colour=False).partition("\n\n")[2]
    assert text.partition("\n\n")[2] == below
