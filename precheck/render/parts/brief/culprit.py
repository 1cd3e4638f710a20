"""The operation that breaks the run which matters most, in three lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Verdict
from precheck.records.quantities import magnitude, times
from precheck.render.parts.culprit import layer_of_all
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.outcomes.gate import Gate
    from precheck.records.report import Report, Run
    from precheck.records.traces import Overflow

_BROKEN = frozenset({Verdict.OVERFLOW, Verdict.DEGRADED})


def focus_of(report: Report, gate: Gate) -> Run | None:
    """The run to explain: one that would be deployed, else the gravest; None where all are fine."""
    deployed = {deployment.configuration for deployment in gate.deployments}
    broken = [run for run in report.runs if run.verdict in _BROKEN]
    return min(
        broken,
        key=lambda run: (
            not run.configurations & deployed,
            run.configuration.has_format,
            run.verdict.order,
        ),
        default=None,
    )


def culprit_lines(report: Report, run: Run | None) -> Iterator[tuple[str, Text]]:
    """Where, which operation at which line of the model's code, how large."""
    if run is None:
        return
    first = run.first_overflow
    if first is not None:
        yield from _of_overflow(report, run, first)
        return
    for finding in report.findings_of(run):
        if finding.code == "PC201":
            told = finding.message.removeprefix(finding.gist).lstrip(". ")
            yield "where", Text(shown(f"{finding.module or 'no layer alone'}, in {run.name}"))
            told = " ".join(each for each in told.split(". ") if not each.startswith("It starts"))
            if told:
                yield "why", Text(shown(told))
            return


def _of_overflow(report: Report, run: Run, first: Overflow) -> Iterator[tuple[str, Text]]:
    place = "" if first.layer is None else f" ({layer_of_all(report, first)})"
    yield "where", Text(shown(f"{first.module}{place}, in {run.name}"), style="bold")
    operation = shown(f"{first.op} at {first.source}: {first.code}")
    yield "operation", Text(operation, no_wrap=True, overflow="ellipsis")
    yield "size", Text(shown(_size(run, first)))


def _size(run: Run, first: Overflow) -> str:
    if first.reference_abs_max is None or not first.is_out_of_range:
        return first.event
    ratio = first.reference_abs_max / first.limit if first.limit else 0.0
    value = magnitude(first.reference_abs_max)
    limit = f"{times(ratio)} {run.dtype}'s maximum of {magnitude(first.limit)}"
    return f"{value} is {limit}: {first.mechanism.phrase.removeprefix('the ')}"
