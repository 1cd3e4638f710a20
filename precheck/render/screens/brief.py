"""A report in about fifteen lines: may it be deployed, what breaks where, what to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from precheck.records.finding import USABLE, VERBS, Severity, Verdict
from precheck.records.quantities import listed
from precheck.render.parts.brief_culprit import culprit_lines, focus_of
from precheck.render.parts.brief_runs import run_lines
from precheck.render.parts.headline import broken_checkpoint, identity, tested
from precheck.render.parts.next_steps import next_steps, use_lines
from precheck.render.parts.printed import printed
from precheck.render.parts.words import SEVERITY_MARKS, VERDICT_MARKS, Mark, shown
from precheck.render.parts.wrapping import Wrapped, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.finding import Finding
    from precheck.records.gate import Deployment, Gate
    from precheck.records.report import Report, Run

_UNKNOWN = Mark("?", "yellow")
_MOST_FINDINGS = 3
_LABEL_WIDTH = 11
_IN_RUNS = frozenset({"PC201", "PC901", "PC402"})
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
        *_verdict(report, gate),
        *run_lines(report, width=width),
        Text(),
        *_details(report, gate, engine),
    ]
    return f"{printed(*lines, width=width, colour=colour)}\n"


def render_verdict(report: Report, gate: Gate, *, width: int, colour: bool) -> str:
    """The first lines of it alone: what stands above the tables of a longer output."""
    return f"{printed(*_verdict(report, gate), width=width, colour=colour)}\n"


def _verdict(report: Report, gate: Gate) -> Iterator[RenderableType]:
    """What would be deployed, what breaks elsewhere, and which model this is about."""
    broken = broken_checkpoint(report)
    if broken is not None:
        yield _marked(SEVERITY_MARKS[Severity.ERROR], f"BROKEN: {broken.headline} ({broken.code})")
    else:
        for deployment in gate.deployments if report.complete else ():
            yield _marked(_mark(deployment), _deployed(report, deployment))
        if not gate.deployments and report.complete:
            yield _marked(_UNKNOWN, "; ".join(gate.reasons))
    if not report.complete:
        yield _marked(_UNKNOWN, gate.line)
    if broken is None and (elsewhere := _elsewhere(report, gate)) is not None:
        yield _marked(VERDICT_MARKS[Verdict.OVERFLOW], elsewhere)
    yield wrapped(Text(identity(report), style="dim"), indent=2)


def _deployed(report: Report, deployment: Deployment) -> str:
    words = deployment.words.removeprefix("is ").removeprefix("has ")
    is_told = deployment.verdict is Verdict.SAFE and deployment.holds and not report.is_static
    return f"{deployment.name}: {words}{f', {tested(report)}' if is_told else ''}"


def _mark(deployment: Deployment) -> Mark:
    if not deployment.holds:
        return VERDICT_MARKS[
            Verdict.INCOMPLETE if deployment.verdict is Verdict.INCOMPLETE else Verdict.OVERFLOW
        ]
    return _UNKNOWN if deployment.verdict is None else VERDICT_MARKS[deployment.verdict]


def _elsewhere(report: Report, gate: Gate) -> str | None:
    """What breaks in configurations that nobody would deploy; None where nothing does."""
    deployed = {deployment.configuration for deployment in gate.deployments}
    broken = [
        run
        for run in report.runs
        if run.verdict not in USABLE | {Verdict.INCOMPLETE}
        and not {run.configuration, run.requested} & deployed
    ]
    if not broken:
        return None
    attentions = {run.attn_implementation for run in broken}
    usable = any(run.verdict in USABLE and not run.dtype.is_reference for run in report.runs)
    if usable and len(attentions) == 1:
        said = listed(tuple(f"{run.dtype} {_does(run)}" for run in broken), most=4)
        return f"only with {attentions.pop()} attention: {said}"
    dtypes = {run.dtype for run in broken}
    if usable and len(dtypes) == 1 and len({_does(run) for run in broken}) == 1:
        return f"only in {broken[0].dtype}: {_does(broken[0])} with {listed(_attentions(broken))}"
    return f"elsewhere: {listed(tuple(f'{run.name} {_does(run)}' for run in broken), most=4)}"


def _attentions(runs: list[Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run.attn_implementation for run in runs))


def _does(run: Run) -> str:
    first = run.first_overflow
    is_placed = run.verdict is Verdict.OVERFLOW and first is not None and first.place
    return f"{VERBS[run.verdict]}{f' in {first.place}' if first and is_placed else ''}"


def _details(report: Report, gate: Gate, engine: str) -> Iterator[RenderableType]:
    """Culprit, other findings, what to use and what to type next, behind their labels."""
    for label, value in culprit_lines(report, focus_of(report, gate)):
        yield _line(label, value)
    for number, (finding, words) in enumerate(_other_findings(report)):
        style = SEVERITY_MARKS[finding.severity].style
        yield _line("" if number else "also", Text(shown(words), style=style))
    for label, value in (*use_lines(report, engine), *next_steps(report)):
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


def _other_findings(report: Report) -> Iterator[tuple[Finding, str]]:
    """Errors and warnings that no line of a run says already, one of each code, gravest first."""
    by_code: dict[str, list[Finding]] = {}
    for finding in report.findings:
        if _is_told_here(finding, report):
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
    return not verdicts & {Verdict.OVERFLOW, Verdict.LOW_HEADROOM, Verdict.ABSORBED}


def _marked(mark: Mark, words: str) -> RenderableType:
    style = f"bold {mark.style}"
    return Wrapped(Text(shown(words), style=style), Text(mark.symbol, style=style), 2)
