"""A report in about fifteen lines: may it be deployed, what breaks where, what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from precheck.records.finding import Severity, Verdict
from precheck.render.parts.brief.culprit import culprit_lines, focus_of
from precheck.render.parts.brief.format_culprits import format_culprits
from precheck.render.parts.brief.format_lines import format_lines
from precheck.render.parts.brief.next_steps import next_steps, use_lines
from precheck.render.parts.brief.runs import run_lines
from precheck.render.parts.brief.verdict import verdict_lines
from precheck.render.parts.headline import broken_checkpoint
from precheck.render.parts.intervals import proved_line
from precheck.render.parts.position_table import position_table, positions_title
from precheck.render.parts.printed import printed
from precheck.render.parts.stored_formats.table import format_tables
from precheck.render.parts.words import SEVERITY_MARKS, shown
from precheck.render.parts.wrapping import Wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.finding import Finding
    from precheck.records.outcomes.gate import Gate
    from precheck.records.report import Report

_MOST_FINDINGS = 3
_LABEL_WIDTH = 11
_INDENT = 2
_IN_RUNS = frozenset({"PC201", "PC602", "PC603", "PC901", "PC402"})
"""Findings that only say what a line of the runs says."""


def render_brief(report: Report, gate: Gate, *, engine: str, width: int, colour: bool) -> str:
    """The report as text, with a line break at the end.

    Args:
        report: what to show.
        gate: the answer for the configurations that would be deployed.
        engine: the one to show the command for.
        width: columns of the terminal.
        colour: with ANSI colours; no information is in the colour alone.
    """
    lines = [
        *verdict_lines(report, gate),
        *run_lines(report, width=width),
        *_formats(report, width=width),
        *_positions(report, width=width),
        Text(),
        *_details(report, gate, engine, width=width),
    ]
    return f"{printed(*lines, width=width, colour=colour)}\n"


def _formats(report: Report, *, width: int) -> Iterator[RenderableType]:
    """A table of the formats that were asked for."""
    for title, written in format_tables(report, width=width - _INDENT):
        yield Text()
        yield Text(f"  {title}", style="bold")
        yield Padding(written, (0, 0, 0, _INDENT))


def _positions(report: Report, *, width: int) -> Iterator[RenderableType]:
    """A table of what changes with the position, where a length was asked for."""
    written = position_table(report, width=width - _INDENT)
    if written is not None and "--context" in report.options:
        yield Text()
        yield Text(f"  {positions_title(report)}", style="bold")
        yield Padding(written, (0, 0, 0, _INDENT))


def _details(report: Report, gate: Gate, engine: str, *, width: int) -> Iterator[RenderableType]:
    """Culprit, other findings, what to use and what to type next, behind their labels."""
    run = focus_of(report, gate)
    for label, value in (*culprit_lines(report, run), *format_culprits(report)):
        yield _line(label, value)
    if (proved := proved_line(report)) is not None:
        yield _line("proved", Text(proved))
    for number, (finding, words) in enumerate(_other_findings(report, engine)):
        style = SEVERITY_MARKS[finding.severity].style
        yield _line("" if number else "also", Text(shown(words), style=style))
    steps = next_steps(report, run, width=width - _LABEL_WIDTH - 2)
    used = tuple(use_lines(report, gate, engine))
    commands = "\n".join(value.plain for _, value in used)
    formats = format_lines(report, gate, engine, commands=commands)
    for label, value in (*used, *formats, *steps):
        yield _line(label, value)


def _line(label: str, value: Text) -> RenderableType:
    """A label and its value, which goes on under itself; a command to copy stays in one line."""
    name = Text(f"  {label:{_LABEL_WIDTH}}", style="dim")
    if not value.no_wrap:
        return Wrapped(value, name, name.cell_len)
    if value.overflow is None:
        return Text.assemble(name, value, no_wrap=True)
    grid = Table.grid()
    grid.add_column(width=name.cell_len, no_wrap=True)
    grid.add_column()
    grid.add_row(name, value)
    return grid


def _other_findings(report: Report, engine: str) -> Iterator[tuple[Finding, str]]:
    """Errors and warnings that no line of a run says already, one of each code, gravest first."""
    by_code: dict[str, list[Finding]] = {}
    for finding in report.findings:
        is_of_an_engine = finding.code == "PC403" and engine != "transformers"  # told beside "use"
        is_of_another = engine not in {"transformers", finding.engine or engine}
        if _is_told_here(finding, report) and not is_of_an_engine and not is_of_another:
            by_code.setdefault(finding.code, []).append(finding)
    for first, *others in list(by_code.values())[:_MOST_FINDINGS]:
        more = f" (and {len(others)} more)" if others else ""
        yield first, f"{first.code}: {first.gist}{more}"


def _is_told_here(finding: Finding, report: Report) -> bool:
    if finding.severity is Severity.NOTE or finding.accepted is not None or not report.complete:
        return False
    if finding.code in _IN_RUNS or finding == broken_checkpoint(report):
        return False
    verdicts = {report.runs[index].verdict for index in finding.runs}
    return not verdicts - {Verdict.SAFE}
