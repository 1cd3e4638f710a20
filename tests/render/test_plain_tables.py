"""What the commands print that show no report: a difference, an explanation, the codes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from precheck.facts.findings import explanations
from precheck.judge import judge
from precheck.judge.comparison.difference import difference
from precheck.records.report import Device
from precheck.render.parts.environment import environment_facts
from precheck.render.screens.difference import render_difference
from precheck.render.screens.explanation import render_codes, render_explanation
from tests import hand_made
from tests.render.test_console import assert_golden
from tests.render.wide import too_wide


def compared(*, width: int, colour: bool = False) -> str:
    before = judge(hand_made.qwen2_eager(), version="0.1.0")
    healthy = judge(hand_made.measurements(), version="0.1.0")
    libraries = {**healthy.environment.libraries, "transformers": "5.24.0"}
    after = replace(healthy, environment=replace(healthy.environment, libraries=libraries))
    found = difference(before, after)
    return render_difference(found, names=("a.json", "b.json"), width=width, colour=colour)


@pytest.mark.parametrize("width", [80, 200])
def test_a_difference_is_shown_as_it_was_last_approved(width: int) -> None:
    text = compared(width=width)
    assert_golden(text, f"difference-{width}.txt")
    assert too_wide(text, width=width) == []


def test_a_difference_is_told_without_colour_too() -> None:
    assert "\x1b[" in compared(width=80, colour=True)
    assert compared(width=80).startswith("✗ the reports differ")


def test_an_explanation_is_shown_as_it_was_last_approved() -> None:
    assert_golden(render_explanation(explanations()["PC301"], width=80, colour=False), "PC301.txt")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    texts = [
        render_explanation(each, width=width, colour=False) for each in explanations().values()
    ]
    texts.append(render_codes(explanations().values(), width=width, colour=False))
    assert [line for text in texts for line in too_wide(text, width=width)] == []


def test_the_environment_tells_what_bug_reports_leave_out() -> None:
    scan = hand_made.measurements()
    t4 = Device(
        name="Tesla T4",
        kind="cuda",
        compute_capability="sm_75",
        memory_bytes=15 * 2**30,
        driver="550.54.14",
        is_usable=False,
    )
    facts = environment_facts(replace(scan.environment, devices=(t4,)))
    assert dict(facts)["device"] == (
        "Tesla T4, sm_75, 15.0 GiB, driver 550.54.14, bfloat16 only emulated, "
        "not usable with the installed torch"
    )
