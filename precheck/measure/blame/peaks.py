"""Producers and peaks of a whole run, gathered over units and batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from precheck.records.mechanism import MECHANISMS, Mechanism
from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.precision import Dtype, headroom_bits
from precheck.records.traces import Headroom

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from precheck.measure.blame.located_producer import Location
    from precheck.measure.watch.segment import OpNode, OpPlace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peak:
    """The largest reference value of one mechanism in one unit, among ops that run in a dtype."""

    abs_max: float
    node: OpNode
    location: Location


@dataclass(slots=True)
class Peaks:
    """The peaks of a run, by (segment, mechanism)."""

    dtype: Dtype
    attn_implementation: str
    found: dict[tuple[int, Mechanism], Peak] = field(default_factory=dict)
    places: dict[tuple[int, Mechanism], set[OpPlace]] = field(default_factory=dict)
    """Every operation of which a value was recorded."""
    bounds: Mapping[OpPlace, float] | None = None
    """What no input exceeds, by operation; None where that was not computed."""

    def add(
        self, *, node: OpNode, abs_max: float, mechanism: Mechanism, location: Location
    ) -> None:
        """Records a value, unless a larger one is known."""
        peak = Peak(abs_max=abs_max, node=node, location=location)
        self._keep_larger((location.order, mechanism), peak)
        self.places.setdefault((location.order, mechanism), set()).add(node.place)

    def merge(self, other: Peaks) -> Peaks:
        """The peaks of both sets of batches together."""
        both = replace(
            self,
            found=dict(self.found),
            places={key: set(places) for key, places in self.places.items()},
        )
        for key, places in other.places.items():
            both.places.setdefault(key, set()).update(places)
        for key, peak in other.found.items():
            both._keep_larger(key, peak)  # noqa: SLF001  of the same class
        return both

    def bound(self, order: int, mechanism: Mechanism) -> float | None:
        """What no operation of a mechanism in a segment exceeds; infinite where one is unbounded.

        None where bounds were not computed, or the run has no such operation.
        """
        places = self.places.get((order, mechanism))
        if self.bounds is None or not places:
            return None
        return max(self.bounds.get(place, math.inf) for place in places)

    def _keep_larger(self, key: tuple[int, Mechanism], peak: Peak) -> None:
        largest = self.found.get(key)
        if largest is None or peak.abs_max > largest.abs_max:
            self.found[key] = peak


def headroom_rows(runs: Sequence[Peaks]) -> tuple[Headroom, ...]:
    """A row per op that is some dtype's largest of its mechanism in its unit, in model order.

    Scores and masks count for the attention implementation that materialises them; every other
    mechanism counts for all.
    """
    largest: dict[tuple[int, Mechanism, str | None, Dtype], Peak] = {}
    for run in runs:
        for (order, mechanism), peak in run.found.items():
            attn = run.attn_implementation if MECHANISMS[mechanism].is_in_scores else None
            key = (order, mechanism, attn, run.dtype)
            if key not in largest or peak.abs_max > largest[key].abs_max:
                largest[key] = peak
    rows: dict[tuple[int, int, str | None, str, str, Mechanism], dict[Dtype, Peak]] = {}
    for (order, mechanism, attn, dtype), peak in largest.items():
        node = peak.node
        row = (order, node.index, attn, node.module, node.op, mechanism)
        rows.setdefault(row, {})[dtype] = peak
    in_order = sorted(rows.items(), key=lambda row: (row[0][0], row[0][1], row[0][2] or ""))
    return tuple(
        _headroom_row(
            mechanism, attn, peaks, _bounds(runs, order, mechanism, attn=attn, dtypes=peaks)
        )
        for (order, _, attn, _, _, mechanism), peaks in in_order
    )


def _bounds(
    runs: Sequence[Peaks],
    order: int,
    mechanism: Mechanism,
    *,
    attn: str | None,
    dtypes: Iterable[Dtype],
) -> dict[Dtype, float]:
    """By dtype, what no input exceeds in the runs that a row counts for."""
    found: dict[Dtype, float] = {}
    for run in runs:
        bound = run.bound(order, mechanism)
        if run.dtype in dtypes and attn in {None, run.attn_implementation} and bound is not None:
            found[run.dtype] = max(bound, found.get(run.dtype, 0.0))
    return found


def _headroom_row(
    mechanism: Mechanism,
    attn: str | None,
    peaks: dict[Dtype, Peak],
    bounds: dict[Dtype, float],
) -> Headroom:
    highest = max(peaks.values(), key=lambda peak: peak.abs_max)
    bits_left = {
        dtype.value: bits
        for dtype, peak in peaks.items()
        if (bits := headroom_bits(peak.abs_max, dtype)) is not None
    }
    node, location = highest.node, highest.location
    return Headroom(
        module=node.module,
        layer=location.layer,
        section=location.section,
        op=node.op,
        source=node.source,
        source_file=node.source_file,
        mechanism=mechanism,
        attn_implementation=attn,
        abs_max=highest.abs_max,
        headroom_bits=bits_left,
        bound_abs_max={
            dtype.value: bound for dtype, bound in bounds.items() if math.isfinite(bound)
        },
        status={
            dtype.value: _status(peaks[dtype].abs_max, bound, limit=dtype.limits.max)
            for dtype, bound in bounds.items()
        },
    )


def _status(abs_max: float, bound: float, *, limit: float) -> ProofStatus:
    """What is known over all inputs: a value that was found may be too large already."""
    if abs_max > limit:
        return ProofStatus.REFUTED
    return ProofStatus.PROVED if bound <= limit else ProofStatus.OPEN
