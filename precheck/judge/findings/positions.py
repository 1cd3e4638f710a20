"""Findings on what changes with the distance from the first token (PC72x)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from precheck.judge.thresholds import (
    COARSE_ANGLE,
    COARSE_NUMBER,
    COARSE_STEP,
    DEGRADED_KL_DIVERGENCE,
    FAR_FROM_NEAR,
    GROWTH,
)
from precheck.records.finding import USABLE, Confidence, Finding, Severity, Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.positions import PositionKind, by_octave
from precheck.records.precision import Dtype, headroom_bits
from precheck.records.quantities import bits, listed, magnitude, nats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.outcomes.positions import PositionFigures, PositionRounding
    from precheck.records.report import Run

_COARSE = {
    PositionKind.BIAS: COARSE_STEP,
    PositionKind.ANGLE: COARSE_ANGLE,
    PositionKind.NUMBER: COARSE_NUMBER,
}
_GROWING_OCTAVES = 4
"""Doublings of the distance, in all of which a value has to grow before more is foretold."""


class _Far(NamedTuple):
    """How a run's accuracy falls with the distance."""

    number: int
    """Of the run, in the report."""
    run: Run
    near: float
    """KL divergence of the first tokens, nats."""
    worst: float
    start: int
    """The first position of those from which it stays above what is tolerated."""
    cause: PositionRounding | None


def lost_far_away(kinds: frozenset[PositionKind]) -> Callable[[Evidence], Iterable[Finding]]:
    """Runs that lose accuracy far from the first token, for one of these reasons.

    Args:
        kinds: what is rounded; none: nothing that is known.
    """
    code = {
        frozenset[PositionKind](): "PC720",
        frozenset({PositionKind.BIAS}): "PC721",
    }.get(kinds, "PC722")

    def find(evidence: Evidence) -> Iterator[Finding]:
        for far in _far(evidence):
            found = frozenset[PositionKind]() if far.cause is None else {far.cause.kind}
            if found == kinds or found & kinds:
                yield _finding(evidence, far, code=code)

    return find


def _far(evidence: Evidence) -> Iterator[_Far]:
    for number, run in evidence.with_verdict(*USABLE, Verdict.DEGRADED):
        known = [(row, row.kl_divergence) for row in run.positions if row.kl_divergence is not None]
        if run.configuration.is_reference or not known:
            continue
        near, worst = known[0][1], max(kl for _, kl in known)
        # it stays above: one bucket in the middle of a text is about that text
        tail: list[int] = []
        for row, kl in reversed(known):
            if kl <= DEGRADED_KL_DIVERGENCE.value:
                break
            tail.append(row.start)
        if tail and worst >= FAR_FROM_NEAR.value * near:
            yield _Far(number, run, near, worst, tail[-1], _cause(run))


def _cause(run: Run) -> PositionRounding | None:
    """What is rounded most coarsely, of what is rounded too coarsely."""
    coarse = [row for row in run.position_roundings if row.step >= _COARSE[row.kind].value]
    return max(coarse, key=lambda row: row.step / _COARSE[row.kind].value, default=None)


def _finding(evidence: Evidence, far: _Far, *, code: str) -> Finding:
    run, cause, start = far.run, far.cause, far.start
    is_degraded = run.verdict is Verdict.DEGRADED
    limit = DEGRADED_KL_DIVERGENCE.value
    above = f"above {limit} from token {start:,} on" if start else f"nowhere below {limit}"
    return Finding(
        code=code,
        severity=Severity.ERROR if is_degraded else Severity.WARNING,
        confidence=Confidence.MEASURED,
        runs=(far.number,),
        module=None if cause is None else cause.module,
        op=None if cause is None else cause.op,
        source=None if cause is None else cause.source,
        source_file=None if cause is None else cause.source_file,
        message=(
            f"{run.name} loses accuracy far from the first token: KL {nats(far.near)} nat at the "
            f"beginning, {above}, up to {nats(far.worst)}."
            f"{'' if cause is None else _because(run, cause)}"
        ),
        advice=(
            f"Use {_others(evidence)}{f', or keep texts below {start:,} tokens' if start else ''}."
        ),
        in_vain="A short test does not show it, and neither does a NaN check.",
    )


def _others(evidence: Evidence) -> str:
    """The 16-bit configurations that keep their accuracy at this length, else float32."""
    lossy = {far.run.name for far in _far(evidence)}
    fine = tuple(
        run.name
        for _, run in evidence.with_verdict(*USABLE)
        if run.positions and not run.configuration.is_reference and run.name not in lossy
    )
    return f"{listed(fine)}, measured at this length" if fine else str(Dtype.FLOAT32)


def _because(run: Run, cause: PositionRounding) -> str:
    where, step = f"at {cause.source}", magnitude(cause.step)
    largest = magnitude(cause.abs_max)
    match cause.kind:
        case PositionKind.BIAS:
            return (
                f" Biases for distances are added to the scores in {run.dtype} ({cause.op} {where})"
                f": they reach {largest}, where neighbouring values are {step} apart, so that "
                "several keys get the same one."
            )
        case PositionKind.ANGLE:
            return (
                f" The angles of the rotary embedding are in {run.dtype} ({cause.op} {where}): "
                f"they reach {largest} radians, where neighbouring values are {step} apart."
            )
        case PositionKind.NUMBER:
            return (
                f" Positions are numbered in {run.dtype} ({cause.op} {where}): at {largest} "
                f"neighbouring values are {step} apart, so that several tokens get the same one."
            )


def growing(evidence: Evidence) -> Iterator[Finding]:
    """Values that grow with every doubling of the distance, beyond what the context allows."""
    context = evidence.measurements.model.max_context
    for index, run in evidence.with_verdict(*USABLE, Verdict.DEGRADED):
        if run.dtype is not Dtype.FLOAT16 or context is None:
            continue
        octaves = by_octave(run.positions)[1:]
        for name in sorted({name for row in octaves for name in row.abs_max}):
            end = _overflows_at(octaves, name)
            if end is not None and end < context:
                yield _growth(run, index, octaves[-1], mechanism=Mechanism(name), end=end)


def _overflows_at(octaves: tuple[PositionFigures, ...], name: str) -> float | None:
    """At which length the value would no longer fit, if it grew on; None where it does not grow."""
    last = octaves[-_GROWING_OCTAVES:]
    sizes = [row.abs_max.get(name, 0.0) for row in last]
    if len(sizes) < _GROWING_OCTAVES or not all(sizes):
        return None
    steps = [
        math.log2(size / before) / math.log2(row.end / other.end)
        for size, before, row, other in zip(sizes[1:], sizes, last[1:], last, strict=False)
    ]
    left = headroom_bits(sizes[-1], Dtype.FLOAT16)
    if min(steps) < GROWTH.value or left is None or left <= 0:
        return None
    mean = sum(steps) / len(steps)
    return float(last[-1].end * 2.0 ** (left / mean))


def _growth(
    run: Run, index: int, last: PositionFigures, *, mechanism: Mechanism, end: float
) -> Finding:
    abs_max = last.abs_max[mechanism.value]
    left = headroom_bits(abs_max, run.dtype) or 0.0
    return Finding(
        code="PC723",
        severity=Severity.WARNING,
        confidence=Confidence.PREDICTED,
        runs=(index,),
        op=None,
        message=(
            f"{run.name}: the largest value of {mechanism.phrase} grows with every doubling of the "
            f"distance from the first token, to {magnitude(abs_max)} at {last.end:,} tokens "
            f"({bits(left)} bits left)."
            f" Growing on like this, it no longer fits into {run.dtype} near "
            f"{magnitude(end)} tokens."
        ),
        advice="Scan with the length that you serve (--context), or use bfloat16.",
    )
