"""What is proved for every prompt, and what is open between two numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.outcomes.intervals import intervals_of
from precheck.records.precision import Dtype
from precheck.records.quantities import bits
from precheck.render.parts.columns import Column
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.words import DASH, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.outcomes.intervals import Interval, MechanismIntervals
    from precheck.records.report import Report, Run

_MOST_OPEN = 3


def run_with_bounds(report: Report) -> Run | None:
    """The run whose proof is told: in float16 with the model's default attention if it has one.

    None where bounds were not computed.
    """
    runs = [run for run in plain_runs(report) if run.proof is not None]
    default = report.model.default_attn_implementation

    def rank(run: Run) -> tuple[bool, bool]:
        return (run.dtype is not Dtype.FLOAT16, run.attn_implementation != default)

    return min(runs, key=rank, default=None)


def proved_line(report: Report) -> str | None:
    """What is proved and what is open, in a line; None where bounds were not computed."""
    run = run_with_bounds(report)
    if run is None or run.proof is None:
        return None
    name = f" ({shown(run.name)})"
    if run.proof.failure is not None:
        return f"nothing for every prompt: {shown(run.proof.failure)}{name}"
    if run.is_proved:
        return f"for every prompt: no operation can overflow{name}"
    mechanisms = intervals_of(report.headroom, run.configuration)
    whole = [each for each in mechanisms if not each.open]
    said = [f"for every prompt: {_names(whole)}"] if whole else []
    not_whole = sorted(
        (each for each in mechanisms if each.open), key=lambda each: each.open[0].found
    )
    if not_whole:
        more = len(not_whole) - _MOST_OPEN
        named = ", ".join(map(_open, not_whole[:_MOST_OPEN]))
        said.append(f"open: {named}{f' and {more} more' if more > 0 else ''}")
    if not said:
        said = [f"{run.proof.num_proved} of {run.proof.num_operations} operations"]
    return f"{'; '.join(said)}{name}"


def _names(mechanisms: list[MechanismIntervals]) -> str:
    """The mechanisms, and in how many layers."""
    layers = max(len(each.intervals) for each in mechanisms)
    names = ", ".join(each.mechanism.replace("_", " ") for each in mechanisms)
    return f"{names} in {layers} of {layers} layers" if layers > 1 else names


def _open(each: MechanismIntervals) -> str:
    first = each.open[0]
    where = f"{len(each.open)} of {len(each.intervals)}: " if each.num_proved else ""
    return f"{each.mechanism.replace('_', ' ')} ({where}{_between(first)})"


def _between(interval: Interval) -> str:
    if interval.status is ProofStatus.REFUTED:
        return f"refuted, {bits(interval.found)} bits found"
    proved = "no bound" if interval.proved is None else f"{bits(interval.proved)} proved"
    return f"{bits(interval.found)} bits found, {proved}"


def interval_tables(report: Report) -> Iterator[tuple[str, list[Column]]]:
    """A title and a table of mechanisms for every run with bounds."""
    for run in plain_runs(report):
        if run.proof is None:
            continue
        mechanisms = intervals_of(report.headroom, run.configuration)
        if mechanisms:
            proof = run.proof
            title = f"For every prompt, {shown(run.name)}: {proof.num_proved:,} of "
            yield f"{title}{proof.num_operations:,} operations proved", _columns(mechanisms)


def _columns(mechanisms: tuple[MechanismIntervals, ...]) -> list[Column]:
    tightest = [min(each.intervals, key=lambda one: one.found) for each in mechanisms]
    loosest = [_least_proved(each) for each in mechanisms]

    def column(header: str, cells: list[str], *, is_word: bool = False, rank: int = 0) -> Column:
        return Column(
            header=header,
            cells=[Text(shown(cell)) for cell in cells],
            justify="left" if is_word else "right",
            rank=rank,
        )

    return [
        column(
            "mechanism", [each.mechanism.replace("_", " ") for each in mechanisms], is_word=True
        ),
        column("proved", [f"{each.num_proved} of {len(each.intervals)}" for each in mechanisms]),
        column("bits found", [bits(each.found) for each in tightest]),
        column("bits proved", [DASH if each is None else bits(each) for each in loosest]),
        column(
            "open first in",
            [each.open[0].row.module if each.open else DASH for each in mechanisms],
            is_word=True,
            rank=1,
        ),
    ]


def _least_proved(each: MechanismIntervals) -> float | None:
    """What the largest bound leaves; None where some place has none."""
    proved = [one.proved for one in each.intervals]
    known = [left for left in proved if left is not None]
    return min(known) if len(known) == len(proved) else None
