"""Findings on attention implementations that were not requested, or not run (PC303 to PC305)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.findings.cures import cure
from precheck.judge.thresholds import LOW_HEADROOM, REFERENCE_DISAGREEMENT
from precheck.records.configuration import Configuration
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.loss import loss
from precheck.records.mechanism import Mechanism
from precheck.records.quantities import bits, magnitude, percent
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.report import Run


def eager_would_overflow(evidence: Evidence) -> Iterator[Finding]:
    """Raw scores beyond the range of eager attention, which a fused kernel never materialises."""
    if evidence.broken_references:
        return
    ran = [run for run in evidence.runs if run.failure is None]
    scores = [
        row for row in evidence.measurements.headroom if row.mechanism is Mechanism.ATTENTION_SCORES
    ]
    for dtype in dict.fromkeys(run.dtype for run in ran):
        eager = Configuration(dtype=dtype, attn_implementation="eager")
        tight = tightest(scores, eager)
        if tight is None or any(run.configuration == eager for run in ran):
            continue
        row, left = tight
        if left >= LOW_HEADROOM.value:
            continue
        does_not_fit = left < 0
        would = "would overflow" if does_not_fit else f"would have {bits(left)} bits of headroom"
        yield Finding(
            code="PC303",
            severity=Severity.WARNING if does_not_fit else Severity.NOTE,
            confidence=Confidence.PREDICTED,
            runs=tuple(index for index, run in enumerate(evidence.runs) if run.dtype is dtype),
            message=(
                f"{eager} was not run and {would}: {row.mechanism.phrase} reach "
                f"{magnitude(row.abs_max)} in {row.module}; {dtype}'s maximum is "
                f"{magnitude(dtype.limits.max)}. Fused kernels do not materialise them."
            ),
            advice=cure(evidence, Mechanism.ATTENTION_SCORES, broken=eager),
        ).at(row)


def replaced(evidence: Evidence) -> Iterator[Finding]:
    """Requests that transformers answered with another implementation."""
    pairs: dict[tuple[str, str], list[int]] = {}
    for index, run in enumerate(evidence.runs):
        if run.failure is None and run.requested != run.configuration:
            pair = (run.requested_attn_implementation, run.attn_implementation)
            pairs.setdefault(pair, []).append(index)
    for (requested, used), runs in pairs.items():
        yield Finding(
            code="PC304",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            runs=tuple(runs),
            message=(
                f"{requested} was requested, but {used} ran: the model or the installed libraries "
                f"do not support {requested}. The verdict applies to {used}."
            ),
            advice=(
                f'Pass attn_implementation="{used}" when you load this model, so that a later '
                "library version does not silently choose another one."
            ),
        )


def references_disagree(evidence: Evidence) -> Iterator[Finding]:
    """Float32 runs that do not compute the same thing."""
    references = [
        (index, run)
        for index, run in enumerate(evidence.runs)
        if run.configuration.is_reference
        and run.failure is None
        and not run.reference_nonfinite
        # A token sent to another expert changes a maximum without anything being wrong.
        and all(layer.routing_agreement is None for layer in run.layers)
    ]
    for index, run in references[1:]:
        first, reference = references[0]
        distance = loss(run).relative_error
        if distance is not None and distance > REFERENCE_DISAGREEMENT.value:
            yield _disagreement(run, reference, runs=(first, index), distance=distance)


def _disagreement(run: Run, reference: Run, *, runs: tuple[int, int], distance: float) -> Finding:
    return Finding(
        code="PC305",
        severity=Severity.WARNING,
        confidence=Confidence.MEASURED,
        runs=runs,
        message=(
            f"{run.name} and {reference.name} differ by {percent(distance)} after the last layer; "
            "in float32, attention implementations agree to about one part in a million. One of "
            "them computes something different: another mask, softcap or scale."
        ),
        advice=(
            "Use the implementation the model was trained or evaluated with, and report the "
            "difference to the model's authors."
        ),
    )
