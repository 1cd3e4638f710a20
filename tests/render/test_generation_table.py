"""Texts that runs generated: a reader sees where they diverge, however long they are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.text import Text

from precheck.judge import judge
from precheck.records.precision import Dtype
from precheck.records.traces import Generation
from precheck.render.parts.generation_table import generation_columns
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Report

SAME = "the quick brown fox jumps over the lazy dog and then "


def report(*, reference: str, text: str, first_difference: int | None) -> Report:
    def written(run_text: str, at: int | None) -> tuple[Generation, ...]:
        return (
            Generation(
                probe="chat",
                way="greedy",
                text=run_text,
                num_tokens=16,
                first_difference=at,
                broken_step=None,
                overflow=None,
                error=None,
            ),
        )

    scan = hand_made.measurements()
    runs = tuple(
        replace(
            run,
            generations=written(reference, None)
            if run.dtype is Dtype.FLOAT32
            else written(text, first_difference),
        )
        for run in scan.runs
    )
    return judge(replace(scan, runs=runs), version="0.1.0")


def texts(of: Report, *, longest: int) -> list[str]:
    ((_, columns),) = generation_columns(of, longest=longest)
    cells = columns[-1].cells
    assert all(isinstance(cell, Text) for cell in cells)
    return [cell.plain for cell in cells]


@pytest.mark.parametrize("longest", [20, 21, 30, 40, 200])
def test_two_texts_that_diverge_late_do_not_look_alike(longest: int) -> None:
    of = report(reference=f"{SAME}sleeps", text=f"{SAME}barks", first_difference=13)
    shown = texts(of, longest=longest)
    float32, *others = dict.fromkeys(shown)
    assert len(others) == 1
    assert "b" in others[0][-6:] if longest < 60 else others[0].endswith("barks'")
    assert not float32.endswith("barks'")
    assert all(len(text) <= longest for text in shown)


def test_texts_that_are_the_same_are_shown_from_their_beginning() -> None:
    shown = texts(report(reference=SAME, text=SAME, first_difference=None), longest=20)
    assert set(shown) == {repr(SAME)[:20]}


def test_an_early_divergence_needs_no_window() -> None:
    of = report(reference="yes, of course", text="no, never at all, my friend", first_difference=0)
    assert "'no, never at all, my" in texts(of, longest=21)
