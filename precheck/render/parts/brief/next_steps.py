"""What to use, with one command to paste, and what to type next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Severity
from precheck.render.parts.headline import broken_checkpoint
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.advice import EngineAdvice, Recommendation
    from precheck.records.report import Report

_CURE = "precheck fix"


def use_lines(report: Report, engine: str) -> Iterator[tuple[str, Text]]:
    """The recommended configuration on the first device, as a command for the engine."""
    broken = broken_checkpoint(report)
    if broken is not None:
        yield "do", Text(shown(broken.advice))
        return
    if report.recommendation is None or not report.complete:
        return
    advised, row = _advised(report, engine)
    command = advised.snippets.get(engine) or (None if row is None else row.command)
    if advised.dtype is None or command is None:
        why = row.why if row is not None and advised.dtype else "; ".join(advised.reasons)
        by = "" if engine == "transformers" else f" in {engine}"
        yield "use", Text(shown(f"nothing{by} on {advised.target.name}: {why}"))
        return
    # what is pasted must not be broken
    one_line = " ".join(part.strip() for part in command.splitlines())
    # what is pasted must not be broken
    one_line = one_line.replace("( ", "(").replace(" )", ")")
    yield "use", Text(shown(one_line), style="cyan", no_wrap=True)


def _advised(report: Report, engine: str) -> tuple[Recommendation, EngineAdvice | None]:
    """The first device's advice; of the usual ones, the first on which the engine runs."""
    for advised in report.recommendations:
        for row in advised.engines:
            if row.engine == engine and row.default_dtype is not None:
                return advised, row
    first = report.recommendations[0]
    return first, next((row for row in first.engines if row.engine == engine), None)


def next_steps(report: Report) -> Iterator[tuple[str, Text]]:
    """What helps further, most useful first."""
    if not report.complete:
        yield "next", Text("scan again; --quick takes one short batch")
        return
    codes = [row.code for row in report.findings if row.severity is not Severity.NOTE]
    steps = [f"precheck explain {shown(codes[0])}"] if codes else []
    if any(_CURE in finding.advice for finding in report.findings):
        steps.append(f"precheck fix {shown(shlex.quote(report.model.local_id))} -o fixed")
    steps.append("-v for more")
    if codes:
        steps.append("-o bug.md for a bug report")
    yield "next", Text(" · ".join(steps))
