"""The first lines: may it be deployed, what breaks elsewhere, which model it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import USABLE, Severity, Verdict
from precheck.records.quantities import listed
from precheck.render.parts.headline import broken_checkpoint, identity, reach_of
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.stored_formats.words import cost_words, costly
from precheck.render.parts.words import SEVERITY_MARKS, VERDICT_MARKS, Mark, shown
from precheck.render.parts.wrapping import Wrapped, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.outcomes.gate import Deployment, Gate
    from precheck.records.report import Report, Run

_UNKNOWN = Mark("?", "yellow")


def verdict_lines(report: Report, gate: Gate) -> Iterator[RenderableType]:
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
    deployed = {deployment.configuration for deployment in gate.deployments}
    in_formats = [run for run in costly(report) if not run.configurations & deployed]
    if broken is None and in_formats:
        yield _marked(VERDICT_MARKS[Verdict.OVERFLOW], cost_words(report, tuple(in_formats)))
    yield wrapped(Text(identity(report), style="dim"), indent=2)
    if broken is not None and report.runs:
        only = "the runs only show how these weights round, whatever the model would be"
        yield wrapped(Text(only, style="dim"), indent=2)


def _deployed(report: Report, deployment: Deployment) -> str:
    words = deployment.words.removeprefix("is ").removeprefix("has ")
    is_told = deployment.verdict is Verdict.SAFE and deployment.holds and not report.is_static
    note = f"; {deployment.note}" if deployment.note else ""
    runs = [run for run in report.runs if deployment.configuration in run.configurations]
    return f"{deployment.name}: {words}{f', {reach_of(report, runs)}' if is_told else ''}{note}"


def _mark(deployment: Deployment) -> Mark:
    if not deployment.holds:
        return VERDICT_MARKS[
            Verdict.INCOMPLETE if deployment.verdict is Verdict.INCOMPLETE else Verdict.OVERFLOW
        ]
    if deployment.verdict is None:
        return _UNKNOWN
    is_accepted = deployment.verdict not in USABLE
    return SEVERITY_MARKS[Severity.WARNING] if is_accepted else VERDICT_MARKS[deployment.verdict]


def _elsewhere(report: Report, gate: Gate) -> str | None:
    """What breaks in configurations that nobody would deploy; None where nothing does."""
    deployed = {deployment.configuration for deployment in gate.deployments}
    runs = plain_runs(report)
    broken = [run for run in runs if run.verdict not in USABLE | {Verdict.INCOMPLETE}]
    others = [run for run in broken if not run.configurations & deployed]
    if not others:
        return None
    is_all = len(others) == len(broken)
    attentions = {run.attn_implementation for run in others}
    usable = {run.attn_implementation for run in runs if run.verdict in USABLE}
    if is_all and len(attentions) == 1 and usable - attentions:
        said = listed(tuple(f"{run.dtype} {run.effect}" for run in others), most=4)
        return f"only with {attentions.pop()} attention: {said}"
    does = {(run.dtype, run.effect) for run in others}
    if is_all and len(does) == 1:
        return f"only in {others[0].dtype}: {others[0].effect} with {listed(_attentions(others))}"
    said = listed(tuple(f"{run.name} {run.effect}" for run in others), most=4)
    return f"{'elsewhere' if is_all else 'also'}: {said}"


def _attentions(runs: list[Run]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run.attn_implementation for run in runs))


def _marked(mark: Mark, words: str) -> RenderableType:
    style = f"bold {mark.style}"
    return Wrapped(Text(shown(words), style=style), Text(mark.symbol, style=style), 2)
