"""Two reports side by side: their runs in pairs, and where the figures of a pair part."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from precheck.judge.thresholds import (
    DIFFERENT_DIVERGENCE,
    DIFFERENT_SIZE,
    DIFFERENT_SIZE_FLOAT32,
)
from precheck.records.difference import Change
from precheck.records.identity import identity
from precheck.records.loss import loss
from precheck.records.quantities import nats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.thresholds import Threshold
    from precheck.records.finding import Finding
    from precheck.records.precision import Dtype
    from precheck.records.report import Report, Run
    from precheck.records.traces import Headroom, LayerTrace

NONE = "\N{EN DASH}"
"""Where one of the two has nothing."""


class Pair(NamedTuple):
    """A run that both reports have."""

    name: str
    first: Run
    second: Run


def how(pair: Pair) -> tuple[tuple[str, object, object], ...]:
    """How the two runs were computed."""
    ours, theirs = pair.first, pair.second
    return (
        (f"attention of {pair.name}", ours.attn_implementation, theirs.attn_implementation),
        (f"experts of {pair.name}", ours.experts_implementation, theirs.experts_implementation),
        (f"device of {pair.name}", ours.device, theirs.device),
        (f"arithmetic of {pair.name}", ours.arithmetic.value, theirs.arithmetic.value),
    )


def pairs_of(first: Report, second: Report) -> list[Pair]:
    """The runs that both have, by what was asked for."""
    theirs = {_asked(run): run for run in reversed(second.runs)}
    ours = {_asked(run): run for run in reversed(first.runs)}
    names = dict.fromkeys(_asked(run) for run in first.runs)
    return [Pair(name, ours[name], theirs[name]) for name in names if name in theirs]


def _asked(run: Run) -> str:
    asked = run.requested_attn_implementation
    return str(replace(run.configuration, attn_implementation=asked))


def missing_runs(first: Report, second: Report) -> Iterator[Change]:
    """The runs that only one of them has."""
    ours = {_asked(run): run.verdict.value for run in first.runs}
    theirs = {_asked(run): run.verdict.value for run in second.runs}
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in ours or name not in theirs:
            yield Change(
                what=name,
                first=ours.get(name, "not measured"),
                second=theirs.get(name, "not measured"),
            )


def figures(pair: Pair) -> Iterator[Change]:
    """Another verdict, or a divergence that is more than rounding's."""
    ours, theirs = pair.first, pair.second
    if ours.verdict is not theirs.verdict:
        yield Change(what=pair.name, first=_verdict(ours), second=_verdict(theirs))
    before, after = loss(ours).kl_divergence, loss(theirs).kl_divergence
    if _diverges_otherwise(before, after):
        yield Change(
            what=f"KL of {pair.name}",
            first=NONE if before is None else nats(before),
            second=NONE if after is None else nats(after),
        )


def _verdict(run: Run) -> str:
    at = run.first_overflow
    place = "" if at is None else f" in {at.module}, {at.op} at {at.source}"
    return f"{run.verdict.replace('_', ' ')}{place}"


def _diverges_otherwise(before: float | None, after: float | None) -> bool:
    """Whether one is twice the other, and large enough to matter."""
    if before is None or after is None:
        return before is not after
    larger, smaller = max(before, after), min(before, after)
    return larger > DIFFERENT_DIVERGENCE.value and larger > 2 * smaller


def different_layers(pair: Pair) -> list[tuple[str, LayerTrace | None, LayerTrace | None]]:
    """Module, the first report's layer and the second's, of those that are not alike."""
    ours = {(each.module, each.index): each for each in pair.first.layers}
    theirs = {(each.module, each.index): each for each in pair.second.layers}
    if not ours or not theirs:  # a run that failed or stopped is told as a verdict
        return []
    return [
        (place[0], ours.get(place), theirs.get(place))
        for place in dict.fromkeys((*ours, *theirs))
        if _is_other(ours.get(place), theirs.get(place), dtype=pair.first.dtype)
    ]


def _is_other(first: LayerTrace | None, second: LayerTrace | None, *, dtype: Dtype) -> bool:
    if first is None or second is None:
        return True
    if first.is_finite != second.is_finite:
        return True
    if first.abs_max is None or second.abs_max is None:
        return first.abs_max is not second.abs_max
    tolerance = DIFFERENT_SIZE_FLOAT32 if dtype.is_reference else DIFFERENT_SIZE
    return _is_apart(first.abs_max, second.abs_max, tolerance)


def different_values(first: Report, second: Report) -> list[tuple[Headroom, Headroom]]:
    """Rows of headroom that both have and that are not alike, the farthest apart first."""
    ours, theirs = _largest(first), _largest(second)
    both = [(row, theirs[place]) for place, row in ours.items() if place in theirs]
    apart = [pair for pair in both if _is_apart(pair[0].abs_max, pair[1].abs_max, DIFFERENT_SIZE)]
    return sorted(apart, key=lambda pair: -_ratio(pair[0].abs_max, pair[1].abs_max))


def _largest(report: Report) -> dict[tuple[str, str, str, str | None], Headroom]:
    """Of rows in one place, such as two additions in a layer, the largest."""
    return {_place(row): row for row in sorted(report.headroom, key=lambda row: row.abs_max)}


def _place(row: Headroom) -> tuple[str, str, str, str | None]:
    return (row.module, row.op, row.mechanism, row.attn_implementation)


def _ratio(first: float, second: float) -> float:
    smaller = min(abs(first), abs(second))
    return max(abs(first), abs(second)) / smaller if smaller else math.inf


def _is_apart(first: float, second: float, tolerance: Threshold) -> bool:
    return abs(first - second) > tolerance.value * max(abs(first), abs(second))


def different_weights(first: Report, second: Report) -> tuple[str, ...]:
    """Layers whose stored tensors differ; none where one of the reports does not tell."""
    ours, theirs = first.checkpoint, second.checkpoint
    if not ours.digests or not theirs.digests or ours.digest == theirs.digest:
        return ()
    names = dict.fromkeys((*ours.digests, *theirs.digests))
    return tuple(name for name in names if ours.digests.get(name) != theirs.digests.get(name))


def only_in(these: Report, others: Report) -> tuple[Finding, ...]:
    """Findings that the others do not have, whatever their figures."""
    known = {identity(each) for each in others.findings}
    return tuple(each for each in these.findings if identity(each) not in known)
