"""Findings on what holds for every prompt (PC70x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.thresholds import NEAR_OVERFLOW
from precheck.records.finding import USABLE, Confidence, Finding, Severity
from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.outcomes.intervals import intervals_of
from precheck.records.quantities import bits, counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence


def proved(evidence: Evidence) -> Iterator[Finding]:
    """Runs in which no operation can overflow, whatever the prompt: one note for all."""
    runs = [(number, run) for number, run in enumerate(evidence.runs) if run.is_proved]
    if not runs:
        return
    assumptions = dict.fromkeys(
        each for _, run in runs if run.proof is not None for each in run.proof.assumptions
    )
    yield Finding(
        code="PC701",
        severity=Severity.NOTE,
        confidence=Confidence.PROVED,
        runs=tuple(number for number, _ in runs),
        message=(
            f"{listed(tuple(run.name for _, run in runs))}: proved for every prompt that no "
            f"operation overflows. It takes for granted: {'; '.join(assumptions) or 'nothing'}."
        ),
        advice=(
            "Longer or other texts need no check of the range; how accurate the run is was "
            "measured on the probes only."
        ),
    )


def near_and_open(evidence: Evidence) -> Iterator[Finding]:
    """Values that came near the limit and are not proved to stay below it: one note a run."""
    for number, run in evidence.with_verdict(*USABLE):
        near = [
            each
            for mechanism in intervals_of(evidence.measurements.headroom, run.configuration)
            for each in mechanism.open
            if each.found < NEAR_OVERFLOW.value and each.status is ProofStatus.OPEN
        ]
        if not near:
            continue
        first = min(near, key=lambda each: each.found)
        left = "there is no bound" if first.proved is None else f"{bits(first.proved)} proved"
        mechanisms = dict.fromkeys(each.row.mechanism for each in near)
        yield Finding(
            code="PC702",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            runs=(number,),
            message=(
                f"{run.name}: another prompt may overflow in {counted(len(near), 'place')} "
                f"({listed(tuple(each.phrase for each in mechanisms))}). The tightest is "
                f"{first.row.module}, which reached {magnitude(first.row.abs_max)}: "
                f"{bits(first.found)} bits of headroom found, {left}."
            ),
            advice="Scan with your own prompts, the longest and the oddest too (--prompts).",
        ).at(*(each.row for each in near))
