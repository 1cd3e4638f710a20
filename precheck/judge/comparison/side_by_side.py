"""Two reports side by side: their runs in pairs, and where the figures of a pair differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from precheck.judge.thresholds import (
    DIFFERENT_DIVERGENCE,
    DIFFERENT_SIZE,
    DIFFERENT_SIZE_FLOAT32,
)
from precheck.records.loss import loss
from precheck.records.outcomes.difference import Change
from precheck.records.quantities import nats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.thresholds import Threshold
    from precheck.records.configuration import Configuration
    from precheck.records.finding import Finding
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
    name, first, second = pair
    return (
        (f"attention of {name}", first.attn_implementation, second.attn_implementation),
        (f"experts of {name}", first.experts_implementation, second.experts_implementation),
        (f"device of {name}", first.device, second.device),
        (f"arithmetic of {name}", first.arithmetic.value, second.arithmetic.value),
    )


def pairs_of(first: Report, second: Report) -> list[Pair]:
    """The runs that both have, by what was requested."""
    first_runs, second_runs = _by_request(first), _by_request(second)
    return [
        Pair(str(requested), run, second_runs[requested])
        for requested, run in first_runs.items()
        if requested in second_runs
    ]


def missing_runs(first: Report, second: Report) -> Iterator[Change]:
    """The runs that only one of them has."""
    first_runs, second_runs = _by_request(first), _by_request(second)
    for requested in dict.fromkeys((*first_runs, *second_runs)):
        if requested not in first_runs or requested not in second_runs:
            yield Change(
                what=str(requested),
                first=_verdict_value(first_runs.get(requested)),
                second=_verdict_value(second_runs.get(requested)),
            )


def _by_request(report: Report) -> dict[Configuration, Run]:
    """The runs of a report by request, in their order; the first of two with the same request."""
    runs: dict[Configuration, Run] = {}
    for run in report.runs:
        runs.setdefault(run.requested, run)
    return runs


def _verdict_value(run: Run | None) -> str:
    return "not measured" if run is None else run.verdict.value


def figures(pair: Pair) -> Iterator[Change]:
    """Another verdict, or a divergence that is more than rounding's."""
    name, first, second = pair
    if first.verdict is not second.verdict:
        yield Change(what=name, first=_verdict(first), second=_verdict(second))
    before, after = loss(first).kl_divergence, loss(second).kl_divergence
    if _is_other_divergence(before, after):
        yield Change(
            what=f"KL of {name}",
            first=NONE if before is None else nats(before),
            second=NONE if after is None else nats(after),
        )


def _verdict(run: Run) -> str:
    overflow = run.first_overflow
    where = "" if overflow is None else f" in {overflow.module}, {overflow.op} at {overflow.source}"
    return f"{run.verdict.replace('_', ' ')}{where}"


def _is_other_divergence(before: float | None, after: float | None) -> bool:
    """Whether one is twice the other, and large enough to matter."""
    if before is None or after is None:
        return before is not after
    larger, smaller = max(before, after), min(before, after)
    return larger > DIFFERENT_DIVERGENCE.value and larger > 2 * smaller


def different_layers(pair: Pair) -> list[tuple[str, LayerTrace | None, LayerTrace | None]]:
    """Module, the first report's layer and the second's, where the two differ."""
    first, second = _layers(pair.first), _layers(pair.second)
    if not first or not second:  # a run that failed or stopped is reported as a verdict
        return []
    is_reference = pair.first.configuration.is_reference
    tolerance = DIFFERENT_SIZE_FLOAT32 if is_reference else DIFFERENT_SIZE
    return [
        (key[0], first.get(key), second.get(key))
        for key in dict.fromkeys((*first, *second))
        if _is_other_layer(first.get(key), second.get(key), tolerance=tolerance)
    ]


def _layers(run: Run) -> dict[tuple[str, int], LayerTrace]:
    return {(layer.module, layer.index): layer for layer in run.layers}


def _is_other_layer(
    first: LayerTrace | None, second: LayerTrace | None, *, tolerance: Threshold
) -> bool:
    if first is None or second is None:
        return True
    if first.is_finite != second.is_finite:
        return True
    if first.abs_max is None or second.abs_max is None:
        return first.abs_max is not second.abs_max
    return _is_apart(first.abs_max, second.abs_max, tolerance)


def different_values(first: Report, second: Report) -> list[tuple[Headroom, Headroom]]:
    """Rows of headroom that both have and that differ, the largest difference first."""
    first_rows, second_rows = _largest(first), _largest(second)
    both = [(row, second_rows[key]) for key, row in first_rows.items() if key in second_rows]
    apart = [
        (before, after)
        for before, after in both
        if _is_apart(before.abs_max, after.abs_max, DIFFERENT_SIZE)
    ]
    return sorted(apart, key=lambda rows: -_ratio(rows[0].abs_max, rows[1].abs_max))


def _largest(report: Report) -> dict[tuple[str, str, str, str | None], Headroom]:
    """Of rows about the same operation, such as two additions in a layer, the largest."""
    return {
        (row.module, row.op, row.mechanism, row.attn_implementation): row
        for row in sorted(report.headroom, key=lambda row: row.abs_max)
    }


def _ratio(first: float, second: float) -> float:
    smaller = min(abs(first), abs(second))
    return max(abs(first), abs(second)) / smaller if smaller else math.inf


def _is_apart(first: float, second: float, tolerance: Threshold) -> bool:
    return abs(first - second) > tolerance.value * max(abs(first), abs(second))


def different_weights(first: Report, second: Report) -> tuple[str, ...]:
    """Layers whose stored tensors differ; none where the digests do not show it."""
    if first.checkpoint.has_weights_of(second.checkpoint) is not False:
        return ()
    before, after = first.checkpoint.digests, second.checkpoint.digests
    names = dict.fromkeys((*before, *after))
    return tuple(name for name in names if before.get(name) != after.get(name))


def only_in(report: Report, other: Report) -> tuple[Finding, ...]:
    """Findings of a report that the other does not have, whatever their figures."""
    others = {finding.identity for finding in other.findings}
    return tuple(finding for finding in report.findings if finding.identity not in others)
