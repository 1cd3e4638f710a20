"""Whether a checkpoint may be deployed as it would be: the answer behind the exit code."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import MECHANISMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.configuration import Configuration
    from precheck.records.finding import Finding
    from precheck.records.report import Report, Run


class FailOn(StrEnum):
    """What the gate rejects."""

    ERROR = "error"
    WARNING = "warning"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Whether the gate holds, and why or why not, as sentences."""

    holds: bool
    reasons: tuple[str, ...]


_REJECTED = {
    FailOn.ERROR: frozenset({Verdict.FAILED, Verdict.OVERFLOW, Verdict.DEGRADED}),
    FailOn.WARNING: frozenset(Verdict) - {Verdict.SAFE},
    FailOn.NEVER: frozenset[Verdict](),
}


_EXPLAINS = {
    Verdict.FAILED: frozenset({"PC402"}),
    Verdict.OVERFLOW: frozenset({"PC111", *(row.code for row in MECHANISMS.values())}),
    Verdict.DEGRADED: frozenset({"PC201"}),
    Verdict.ABSORBED: frozenset({"PC112"}),
    Verdict.LOW_HEADROOM: frozenset({"PC114"}),
}
"""The findings that say why a run has its verdict."""


def gate(report: Report, *, require: tuple[Configuration, ...] = (), fail_on: FailOn) -> Gate:
    """Judge the configurations that would be deployed.

    Args:
        report: a judged scan.
        require: the configurations to judge; without any, what a plain
            ``from_pretrained(dtype="auto")`` would load.
        fail_on: ``error`` rejects what is wrong, ``warning`` also what may become wrong
            (little headroom, an absorbed overflow), ``never`` rejects nothing.

    A run is let pass if a baseline accepts every finding that explains its verdict.
    """
    if fail_on is FailOn.NEVER:
        return Gate(holds=True, reasons=("Nothing is rejected (--fail-on never).",))
    if report.is_static:
        return _static_gate(report, fail_on=fail_on)
    against = [*_broken(report), *_not_measurable(report, require=require)]
    in_favour: list[str] = [
        f"{finding.code} is accepted: {finding.accepted}."
        for finding in report.findings
        if finding.accepted
    ]
    deployed = () if report.model.deployed is None else (report.model.deployed,)
    for configuration in require or deployed:
        runs = _matching(report, configuration)
        rejected = [sentence for run in runs for sentence in _against(report, run, fail_on=fail_on)]
        if not runs:
            against.append(f"{configuration} was not measured.")
        elif rejected:
            against.extend(rejected)
        else:
            in_favour.extend(_sentence(run) for run in runs)
    return Gate(holds=not against, reasons=tuple(against or in_favour))


def _against(report: Report, run: Run, *, fail_on: FailOn) -> Iterator[str]:
    """What rejects a run: its verdict, or accuracy that is lost on odd inputs alone."""
    explaining = _findings_of(report, run, codes=_EXPLAINS.get(run.verdict, frozenset()))
    is_accepted = bool(explaining) and all(finding.accepted for finding in explaining)
    contradiction = _contradiction(run)
    if contradiction is not None:
        yield f"{run.name}: {run.verdict.replace('_', ' ')}, but {contradiction}: scan again."
    elif run.verdict in _REJECTED[fail_on]:
        if not is_accepted:
            yield _sentence(run)
    elif fail_on is FailOn.WARNING:
        for finding in _findings_of(report, run, codes=frozenset({"PC204"})):
            if finding.accepted is None:
                yield finding.message


def _contradiction(run: Run) -> str | None:
    """What a scan cannot have written, where a run is said to give answers; saved reports may."""
    if run.verdict in {Verdict.FAILED, Verdict.OVERFLOW}:
        return None
    if run.failure is not None:
        return "it failed"
    if not run.layers:
        return "no layer was measured"
    if run.reaches_output or run.reference_nonfinite:
        return "its output is not finite"
    if run.first_overflow is not None and not run.first_overflow.absorbed:
        return "an overflow was not absorbed"
    return None


def _findings_of(report: Report, run: Run, *, codes: frozenset[str]) -> list[Finding]:
    index = next(index for index, other in enumerate(report.runs) if other is run)
    return [
        finding for finding in report.findings if index in finding.runs and finding.code in codes
    ]


def _static_gate(report: Report, *, fail_on: FailOn) -> Gate:
    """Nothing was run: only what is read or documented can speak against the checkpoint."""
    rejected = {Severity.ERROR} | ({Severity.WARNING} if fail_on is FailOn.WARNING else set())
    against = tuple(
        finding.message
        for finding in report.findings
        if finding.severity in rejected and finding.accepted is None
    )
    in_favour = f"nothing speaks against {report.model.deploy_dtype}, and nothing was run."
    return Gate(holds=not against, reasons=against or (in_favour,))


def _broken(report: Report) -> Iterator[str]:
    """What rejects a checkpoint whatever it is deployed as."""
    for finding in report.findings:
        is_broken = finding.severity is Severity.ERROR and finding.code.startswith("PC5")
        if is_broken and finding.accepted is None:
            yield finding.message
    is_accepted = any(finding.code == "PC113" and finding.accepted for finding in report.findings)
    for run in report.runs:
        if run.reference_nonfinite and not is_accepted:
            yield f"{run.name} is not finite, so the model is broken in every dtype."


def _not_measurable(report: Report, *, require: tuple[Configuration, ...]) -> Iterator[str]:
    if not require and report.model.deployed is None:
        yield (
            f"The checkpoint would be loaded as {report.model.deploy_dtype or 'an unknown dtype'}, "
            "which precheck does not measure: say what you deploy (--require float16+sdpa)."
        )


def _matching(report: Report, configuration: Configuration) -> tuple[Run, ...]:
    """Its runs, by the attention asked for or used; whatever the attention if none is known."""
    if not configuration.attn_implementation:
        return tuple(
            run for run in report.runs if run.configuration.with_attention("") == configuration
        )
    return tuple(run for run in report.runs if configuration in {run.requested, run.configuration})


def _sentence(run: Run) -> str:
    words = run.verdict.replace("_", " ")
    return f"{run.name}: {words}{f' ({run.reason})' if run.reason else ''}."
