"""What to use, with one command to paste, and what to type next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from precheck.records.finding import Severity
from precheck.records.quantities import listed
from precheck.render.parts.brief.format_lines import required_flags
from precheck.render.parts.headline import broken_checkpoint
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.advice import EngineAdvice, Recommendation
    from precheck.records.outcomes.gate import Gate
    from precheck.records.report import Report, Run

_CURE = "precheck fix"
_OWN = "transformers"
"""The library whose default the gate judges."""


def use_lines(report: Report, gate: Gate, engine: str) -> Iterator[tuple[str, Text]]:
    """What is recommended on each device that was named or found, and the engine's command."""
    broken = broken_checkpoint(report)
    if broken is not None:
        yield "do", Text(shown(broken.advice))
        return
    if report.recommendation is None or not report.complete:
        return
    groups: dict[tuple[str, str | None], list[Recommendation]] = {}
    for advised in _advised(report, gate, engine):
        command = _command(advised, engine, gate)
        groups.setdefault((advised.name, command), []).append(advised)
    for (name, command), devices in groups.items():
        where = shown(listed(tuple(advised.target.name for advised in devices), most=4))
        first, row = devices[0], _row(devices[0], engine)
        if command is None:
            by = "" if engine == _OWN else f" in {engine}"
            why = row.why if row is not None and first.dtype else "; ".join(first.reasons)
            yield "use", Text(shown(f"nothing{by} on {where}: {why}"))
            continue
        if engine != _OWN and row is not None:
            yield "by default", Text(shown(f"{engine} on {where}: {row.default}"))
        elif len(groups) > 1 or not gate.holds:
            yield "use", Text.assemble((shown(name), "bold"), f" on {where}:")
            yield "", _whole(command)
            continue
        yield "use", _whole(command)


def _advised(report: Report, gate: Gate, engine: str) -> list[Recommendation]:
    """The advice for what the gate judged; of the usual GPUs, the first that the engine runs on."""
    named = {deployment.device for deployment in gate.deployments} - {None}
    advised = [each for each in report.recommendations if each.target.name in named]
    if advised:
        return advised
    for each in report.recommendations:
        row = _row(each, engine)
        if row is not None and row.default_dtype is not None:
            return [each]
    return [report.recommendations[0]]


def _row(advised: Recommendation, engine: str) -> EngineAdvice | None:
    return next((row for row in advised.engines if row.engine == engine), None)


def _command(advised: Recommendation, engine: str, gate: Gate) -> str | None:
    """One line to paste, with the formats that are required.

    None where the engine has nothing that is known to be safe.
    """
    row = _row(advised, engine)
    command = advised.snippets.get(engine) or (None if row is None else row.command)
    if advised.dtype is None or command is None:
        return None
    line = " ".join(part.strip() for part in command.splitlines())
    formats = required_flags(gate, engine, dtype=advised.dtype)
    return line.replace("( ", "(").replace(" )", ")") + formats


def _whole(command: str) -> Text:
    """What is pasted must not be broken."""
    return Text(shown(command), style="cyan", no_wrap=True)


def next_steps(report: Report, run: Run | None, *, width: int) -> Iterator[tuple[str, Text]]:
    """What helps further, most useful first, each step whole.

    Args:
        report: what is shown.
        run: the one that is explained; None where all are fine.
        width: columns for a line of steps.
    """
    label, line = "next", ""
    for step in _steps(report, run):
        longer = f"{line} \N{MIDDLE DOT} {step}" if line else step
        if line and cell_len(longer) > width:
            yield label, Text(line)
            label, longer = "", step
        line = longer
    yield label, Text(line)


def _steps(report: Report, run: Run | None) -> Iterator[str]:
    if not report.complete:
        yield "scan again; --quick takes one short batch"
        return
    findings = [row for row in report.findings if row.severity is not Severity.NOTE]
    explained = () if run is None else report.findings_of(run)
    findings.sort(key=lambda row: row not in explained)
    name = shlex.quote(report.model.id)
    if findings:
        yield f"precheck explain {shown(findings[0].code)}"
    if any(_CURE in finding.advice for finding in report.findings):
        yield f"precheck fix {shown(name)} -o fixed"
    is_built_in = report.model.local_id != report.model.id
    if is_built_in:  # the folder that "use" names is not there yet
        saved = report.model.local_id.removeprefix("./")
        yield f"precheck demo {shown(saved)} -o {shown(saved)}"
    yield "-v for more"
    if findings and not is_built_in:
        yield "-o bug.md for a bug report"
