"""One row for every run: its verdict, and the figures behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Verdict
from precheck.records.loss import loss
from precheck.records.precision import Accumulation
from precheck.records.quantities import bits, magnitude, nats, percent
from precheck.records.tightest import tightest
from precheck.records.traces import Section
from precheck.render.parts.columns import Column, table
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.words import DASH, shown, verdict_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from precheck.records.report import Report, Run
    from precheck.records.traces import Headroom, Overflow

_LONGEST_SYMPTOM = 80


def run_table(report: Report, *, width: int) -> Table:
    """The table of runs, as many columns as the width has room for."""
    return table(run_columns(report), width=width)


def run_columns(report: Report) -> tuple[Column, ...]:
    """The figures of the runs, a row for each; those with a format have a table of their own."""
    runs = plain_runs(report)

    def column(header: str, cell: Callable[[Run], str], *, rank: int) -> Column:
        cells = [Text(shown(cell(run)), style=_style(run)) for run in runs]
        return Column(header=header, cells=cells, rank=rank)

    def words(header: str, cell: Callable[[Run], str], *, rank: int = 0) -> Column:
        cells = [Text(shown(cell(run))) for run in runs]
        return Column(header=header, cells=cells, rank=rank, justify="left")

    return (
        words("dtype", lambda run: run.dtype),
        words("attention", _attention),
        Column(
            header="verdict",
            cells=[verdict_text(run.verdict) for run in runs],
            justify="left",
        ),
        words("where", lambda run: _where(report, run), rank=4),
        column("max |x|", lambda run: _largest(report, run), rank=6),
        column("bits left", lambda run: _bits_left(report, run), rank=2),
        column("KL", divergence, rank=1),
        column("top-1", agreement, rank=3),
        column("answer error", answer_error, rank=5),
        column("rel. error", _relative_error, rank=7),
        column("perplexity", _perplexity, rank=8),
        words("mechanism", _mechanism, rank=10),
        words("user sees", _symptom, rank=9),
    )


def _attention(run: Run) -> str:
    sums = " (fp16 sums)" if run.accumulation is Accumulation.FLOAT16 else ""
    return f"{run.attn_implementation}{sums}"


def _style(run: Run) -> str:
    """Dim for the reference, whose figures say nothing about a loss."""
    return "dim" if run.dtype.is_reference else ""


def _largest(report: Report, run: Run) -> str:
    """The value that ``bits left`` is about: what comes closest to the dtype's maximum."""
    limiting = tightest(report.headroom, run.configuration)
    fault = not all(layer.is_finite for layer in run.layers)
    largest = limiting[0].abs_max if limiting else _largest_in_layers(run)
    words = ("" if largest is None else magnitude(largest), "NaN" if fault else "")
    return ", then ".join(filter(None, words)) or DASH


def _largest_in_layers(run: Run) -> float | None:
    """Of a float32 run, where nothing comes close to the maximum."""
    sizes = [layer.abs_max for layer in run.layers if layer.abs_max is not None]
    return max(sizes, default=None)


def _bits_left(report: Report, run: Run) -> str:
    limiting = tightest(report.headroom, run.configuration)
    return bits(limiting[1]) if limiting and run.verdict is not Verdict.FAILED else DASH


def _where(report: Report, run: Run) -> str:
    """Of the overflow, else of the least headroom where that is what the verdict is about."""
    place: Overflow | Headroom | None = run.first_overflow
    if run.verdict is Verdict.LOW_HEADROOM:
        limiting = tightest(report.headroom, run.configuration)
        place = limiting[0] if limiting else None
    if place is None:
        return ""
    if place.layer is None:
        return str(place.section)
    is_tower = place.section in {Section.VISION, Section.AUDIO}
    return f"{place.section if is_tower else 'layer'} {place.layer}"


def _mechanism(run: Run) -> str:
    return run.first_overflow.mechanism.replace("_", " ") if run.first_overflow else ""


def _says_something(run: Run) -> bool:
    """Whether a run has a loss: beside an overflow only the probes that survived have figures."""
    return not run.dtype.is_reference and run.verdict is not Verdict.OVERFLOW


def divergence(run: Run) -> str:
    """KL divergence in nats, of a run that is compared with float32 and survives."""
    figure = loss(run).kl_divergence
    return nats(figure) if figure is not None and _says_something(run) else DASH


def agreement(run: Run) -> str:
    """How often the first choice is float32's."""
    figure = run.logits.top1_agreement if run.logits else None
    return percent(figure) if figure is not None and _says_something(run) else DASH


def answer_error(run: Run) -> str:
    """Of a model that generates nothing."""
    figure = run.answers.error if run.answers else None
    return percent(figure) if figure is not None and _says_something(run) else DASH


def _relative_error(run: Run) -> str:
    figure = loss(run).relative_error
    return percent(figure) if figure is not None and _says_something(run) else DASH


def _perplexity(run: Run) -> str:
    figure = run.logits.perplexity if run.logits else None
    return DASH if figure is None or run.verdict is Verdict.OVERFLOW else magnitude(figure)


def _symptom(run: Run) -> str:
    if run.symptom is None:
        return ""
    return (run.symptom.greedy or run.symptom.answer or "")[:_LONGEST_SYMPTOM]
