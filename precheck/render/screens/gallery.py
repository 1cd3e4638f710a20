"""All built-in models at a glance: a row for each scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Severity, Verdict
from precheck.records.precision import Accumulation
from precheck.records.quantities import bits
from precheck.records.tightest import tightest
from precheck.records.traces import Section
from precheck.render.parts.columns import Column, table
from precheck.render.parts.printed import printed
from precheck.render.parts.words import DASH, VERDICT_MARKS, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precheck.records.finding import Finding
    from precheck.records.report import Report, Run
    from precheck.records.traces import Headroom, Overflow


def render_gallery(reports: Mapping[str, Report], *, width: int, colour: bool) -> str:
    """A table with a row for each report, by the name of the built-in model."""

    def column(header: str, cells: list[Text], *, rank: int = 0) -> Column:
        return Column(header=header, cells=cells, rank=rank, justify="left")

    scanned = list(reports.values())
    rows = table(
        (
            column("model", [Text(shown(name)) for name in reports]),
            column("not safe", [_unsafe(report) for report in scanned]),
            column("where", [Text(_where(report)) for report in scanned], rank=2),
            column("because", [Text(_because(report)) for report in scanned]),
            column("in", [Text(_probes(report)) for report in scanned], rank=3),
            column("use", [Text(_use(report)) for report in scanned], rank=1),
        ),
        width=width,
    )
    return printed(rows, width=width, colour=colour)


def _unsafe(report: Report) -> Text:
    """Marks and short names of the runs that are not safe, by verdict."""
    cells = Text()
    for verdict, mark in VERDICT_MARKS.items():
        runs = [run for run in report.runs if run.verdict is verdict]
        if verdict is Verdict.SAFE or not runs:
            continue
        names = dict.fromkeys(_short(report, run) for run in runs)
        cells.append(f"{' ' if cells else ''}{mark.symbol} {', '.join(names)}", style=mark.style)
    return cells or Text(DASH)


def _short(report: Report, run: Run) -> str:
    """``fp16``, with what distinguishes it from the runs of its dtype that are fine."""
    if run.accumulation is Accumulation.FLOAT16:
        return f"{run.dtype.short} sums"
    siblings = [
        other
        for other in report.runs
        if other.dtype is run.dtype and other.accumulation is run.accumulation
    ]
    same = {other.verdict for other in siblings} == {run.verdict}
    return run.dtype.short if same else f"{run.dtype.short} {run.attn_implementation}"


def _gravest(report: Report) -> Run | None:
    for verdict in VERDICT_MARKS:
        for run in report.runs:
            if run.verdict is verdict and verdict is not Verdict.SAFE:
                return run
    return None


def _where(report: Report) -> str:
    run = _gravest(report)
    place: Overflow | Headroom | None = None if run is None else run.first_overflow
    if run is not None and run.verdict is Verdict.LOW_HEADROOM:
        limiting = tightest(report.headroom, run.configuration)
        place = limiting[0] if limiting else None
    if place is None:
        finding = _finding(report)
        return (finding.module or DASH).split(".")[-1] if finding and run is None else DASH
    part = "layer" if place.section is Section.DECODER else str(place.section)
    return f"{part} {place.layer}"


def _because(report: Report) -> str:
    run = _gravest(report)
    if run is None or run.first_overflow is None:
        limiting = None if run is None else tightest(report.headroom, run.configuration)
        if limiting is not None:
            return f"{bits(limiting[1])} bits of headroom"
        finding = _finding(report)
        return finding.code if finding else DASH
    return str(run.first_overflow.mechanism).replace("_", " ")


def _probes(report: Report) -> str:
    """How many of the probes trigger it, by name where they are few."""
    run = _gravest(report)
    if run is None or run.first_overflow is None:
        return DASH
    names = run.first_overflow.probes
    if len(names) == len(report.probes):
        return "all probes"
    return names[0] if len(names) == 1 else f"{len(names)} of {len(report.probes)}"


def _use(report: Report) -> str:
    chosen = report.recommendation
    if chosen is None or chosen.dtype is None:
        return "nothing"
    return f"{chosen.dtype} + {shown(str(chosen.attn_implementation))}"


def _finding(report: Report) -> Finding | None:
    """The gravest finding that needs action."""
    return next(
        (finding for finding in report.findings if finding.severity is not Severity.NOTE), None
    )
