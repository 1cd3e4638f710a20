"""Whether a checkpoint may be deployed as it would be: the answer behind the exit code."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from precheck.errors import unknown
from precheck.judge.deployments import deployments
from precheck.records.finding import Severity
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.gate import Gate, Outcome
from precheck.records.outcomes.intervals import intervals_of
from precheck.records.quantities import counted
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.gate import Deployment
    from precheck.records.report import Report


class FailOn(StrEnum):
    """What the gate rejects."""

    ERROR = "error"
    WARNING = "warning"
    NEVER = "never"


def gate(
    report: Report,
    *,
    require: tuple[Configuration, ...] = (),
    require_proof: tuple[Mechanism, ...] = (),
    fail_on: FailOn,
) -> Gate:
    """Judge the configurations that would be deployed, on the devices that were named or found.

    Args:
        report: a judged scan.
        require: the configurations to judge, with the model's default attention where they name
            none; without any, what a plain ``from_pretrained(dtype="auto")`` would load.
        require_proof: mechanisms that must be proved not to overflow, in every layer of the
            configurations that are judged, for every prompt.
        fail_on: ``error`` rejects what is wrong, ``warning`` also what may become wrong
            (little headroom, an absorbed overflow), ``never`` rejects nothing.

    A run passes if a baseline accepts every finding that explains its verdict.
    """
    is_strict = fail_on is FailOn.WARNING
    judged = tuple(deployments(report, require=require, is_strict=is_strict))
    against = (
        *_broken(report, is_strict=is_strict),
        *_not_measurable(report, require=require),
        *(deployment.sentence for deployment in judged if not deployment.holds),
        *_not_proved(report, judged, require_proof),
    )
    in_favour = (
        *(deployment.sentence for deployment in judged),
        *_accepted(report, said=" ".join(deployment.words for deployment in judged)),
    )
    reasons: tuple[str, ...]
    if not report.complete:
        outcome, reasons = Outcome.INCOMPLETE, (_progress(report),)
    elif fail_on is FailOn.NEVER:
        outcome, reasons = Outcome.PASS, ("nothing is rejected (--fail-on never)",)
    elif against:
        outcome, reasons = Outcome.FAIL, against
    else:
        outcome, reasons = Outcome.PASS, in_favour
    return Gate(outcome=outcome, reasons=reasons, deployments=judged)


def proof_of(name: str) -> Mechanism:
    """The mechanism of ``--require-proof``; ``scores`` is short for the attention scores.

    >>> proof_of("scores")
    <Mechanism.ATTENTION_SCORES: 'attention_scores'>

    Raises:
        UsageError: there is no such mechanism.
    """
    if name == "scores":
        return Mechanism.ATTENTION_SCORES
    if name not in set(Mechanism):
        raise unknown("mechanism", name, ("scores", *Mechanism), hint="--require-proof scores")
    return Mechanism(name)


def _not_proved(
    report: Report, judged: tuple[Deployment, ...], mechanisms: tuple[Mechanism, ...]
) -> Iterator[str]:
    """What was to be proved for every prompt, and is not."""
    configurations = dict.fromkeys(deployment.configuration for deployment in judged)
    for configuration in configurations if mechanisms else ():
        runs = [run for run in report.runs if configuration in run.configurations]
        if not any(run.proof is not None and run.proof.failure is None for run in runs):
            why = next((run.proof.failure for run in runs if run.proof is not None), None)
            yield f"nothing is proved of {configuration}: {why or 'scan it with --prove'}"
            continue
        for run in runs:
            for each in intervals_of(report.headroom, run.configuration):
                if each.mechanism in mechanisms and each.open:
                    first = each.open[0].row
                    yield (
                        f"{each.mechanism.phrase} of {run.name}: not proved for every prompt in "
                        f"{len(each.open)} of {counted(len(each.intervals), 'place')}, "
                        f"first {first.module}"
                    )


def _progress(report: Report) -> str:
    """How far a scan came that ended early: ``stopped after layer 4 of 24, no verdict``."""
    why = (report.incomplete_reason or "it ended early").rstrip(".")
    last = [
        layer.index
        for run in report.runs
        for layer in run.layers
        if layer.section is Section.DECODER
    ]
    num_layers = report.model.num_decoder_layers
    reached = max(last, default=-1) + 1
    if reached < num_layers:
        where = "nothing was measured"
        if reached:
            where = f"stopped after layer {reached} of {num_layers}"
    else:
        where = "stopped before all probes were done"
    return f"{where}, no verdict ({why})"


def _accepted(report: Report, *, said: str) -> Iterator[str]:
    """What a baseline accepts, unless a deployment's words name it already."""
    for finding in report.findings:
        if finding.accepted and finding.code not in said:
            yield f"{finding.code} is accepted by the baseline: {finding.accepted}"


def _broken(report: Report, *, is_strict: bool) -> Iterator[str]:
    """What rejects a checkpoint whatever it is deployed as."""
    for finding in report.findings:
        is_judged = finding.is_of_checkpoint or report.is_static
        is_error = finding.severity is Severity.ERROR and is_judged
        is_warning = is_strict and report.is_static and finding.severity is Severity.WARNING
        if (is_error or is_warning) and finding.accepted is None:
            yield f"{finding.gist} ({finding.code})"
    is_accepted = any(finding.code == "PC113" and finding.accepted for finding in report.findings)
    for run in report.runs:
        if run.reference_nonfinite and not is_accepted:
            yield f"{run.name} is not finite, so the model is broken in every dtype"


def _not_measurable(report: Report, *, require: tuple[Configuration, ...]) -> Iterator[str]:
    if not require and report.model.deployed is None:
        yield (
            f"the checkpoint would be loaded as {report.model.deploy_dtype or 'an unknown dtype'}, "
            "which precheck does not measure: say what you deploy (--require float16+sdpa)"
        )
