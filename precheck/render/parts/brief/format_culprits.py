"""Which part of the model loses what a format costs, a line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Verdict
from precheck.records.quantities import listed, nats
from precheck.render.parts.stored_formats.groups import groups, label
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report, Run

MOST_LINES = 2


def format_culprits(report: Report) -> Iterator[tuple[str, Text]]:
    """The parts that lose most of it by themselves, each with all formats in which it does."""
    by_part: dict[str, list[Run]] = {}
    for group in groups(report):
        for run in group.runs:
            culprits = run.format_culprits
            if run.verdict is Verdict.DEGRADED and culprits is not None and culprits.are_one_part:
                by_part.setdefault(culprits.parts[0].part, []).append(run)
    for number, runs in enumerate(list(by_part.values())[:MOST_LINES]):
        yield "" if number else "lost in", Text(shown(_words(runs)))


def _words(runs: list[Run]) -> str:
    culprits = runs[0].format_culprits
    assert culprits is not None  # noqa: S101  filtered so
    part = culprits.parts[0]
    words = f"{part.part} ({listed(tuple(map(label, runs)))}): {part.size}; {part.loss}"
    if culprits.kl_divergence_left_out is None:
        return words
    left_out = listed(culprits.left_out)
    return f"{words}. With {left_out} in the dtype: KL {nats(culprits.kl_divergence_left_out)}"
