"""A line for each measured configuration; of many, for those that break."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from precheck.records.finding import USABLE, Verdict
from precheck.records.loss import loss
from precheck.records.precision import Dtype
from precheck.records.quantities import bits, counted, first_sentence, nats, percent
from precheck.records.tightest import tightest
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.words import VERDICT_MARKS, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.report import Report, Run

MOST_LINES = 6
_GAP = 2


def run_lines(report: Report, *, width: int) -> Iterator[RenderableType]:
    """All runs where there are at most six; else the broken ones first, and how many more.

    Where the terminal is narrow, the last figures of a line are left out. Runs with a format are
    left out: they have a table.
    """
    runs = measured = list(plain_runs(report))
    if len(runs) > MOST_LINES:
        runs = sorted(runs, key=lambda run: run.verdict in USABLE)[: MOST_LINES - 1]
    if not runs:
        return
    rows = [(_name(run), _word(run), _figures(report, run)) for run in runs]
    names = max(name.cell_len for name, _, _ in rows) + _GAP
    words = max(word.cell_len for _, word, _ in rows) + _GAP
    for name, word, figures in rows:
        name.pad_right(names - name.cell_len)
        word.pad_right(words - word.cell_len)
        kept = _fitting(figures, width=width - names - words)
        yield Text.assemble(name, word, (shown(", ".join(kept)), "dim"))
    if len(runs) < len(measured):
        more = counted(len(measured) - len(runs), "more configuration")
        yield Text(f"    and {more}: -v", style="dim")


def _word(run: Run) -> Text:
    style = VERDICT_MARKS[run.verdict].style
    return Text(run.verdict.replace("_", " "), style=style)


def _name(run: Run) -> Text:
    mark = VERDICT_MARKS[run.verdict]
    return Text.assemble("  ", (mark.symbol, mark.style), f" {shown(run.name)}")


def _fitting(figures: tuple[str, ...], *, width: int) -> tuple[str, ...]:
    """The first of them that fit; the very first always."""
    kept = figures
    while len(kept) > 1 and cell_len(", ".join(kept)) > width:
        kept = kept[:-1]
    return kept


def _figures(report: Report, run: Run) -> tuple[str, ...]:
    """What the verdict rests on, most important first."""
    first = run.first_overflow
    if run.verdict in {Verdict.FAILED, Verdict.INCOMPLETE}:
        return (first_sentence(run.reason or ""),)
    if run.verdict is Verdict.OVERFLOW:
        place = None if first is None else first.place or str(first.section)
        what = None if first is None else first.mechanism.replace("_", " ")
        return tuple(filter(None, (place, what, _answer(run))))
    return (*_headroom(report, run), *_precision(run))


def _answer(run: Run) -> str | None:
    """What a user sees: the text that greedy decoding gives, such as ``!!!!!!!!``."""
    greedy = None if run.symptom is None else run.symptom.greedy
    text = (greedy or "").rpartition("): ")[2].partition(" (")[0]
    if not text:
        return None
    return text if text.startswith("an ") else f"answers {text}"


def _headroom(report: Report, run: Run) -> Iterator[str]:
    limiting = tightest(report.headroom, run.configuration)
    if limiting is not None and run.dtype is Dtype.FLOAT16:
        yield f"{bits(limiting[1])} bits of headroom"


def _precision(run: Run) -> Iterator[str]:
    if run.dtype.is_reference:
        return
    figures = loss(run)
    if figures.kl_divergence is not None:
        yield f"KL {nats(figures.kl_divergence)}"
    if run.logits is not None and run.logits.top1_agreement is not None:
        yield f"top-1 agreement {percent(run.logits.top1_agreement)}"
    if run.answers is not None and run.answers.error is not None:
        yield f"error of the answers {percent(run.answers.error)}"
