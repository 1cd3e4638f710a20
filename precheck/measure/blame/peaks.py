"""Producers and peaks of a whole run, gathered over units and batches."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype, headroom_bits
from precheck.records.traces import Headroom

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.measure.blame.found import Location
    from precheck.measure.watch.segment import OpNode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Peak:
    """The largest reference value of one mechanism in one unit, among ops that run in a dtype."""

    abs_max: float
    node: OpNode
    place: Location


@dataclass(slots=True)
class Peaks:
    """The peaks of a run, by (segment, mechanism)."""

    dtype: Dtype
    attn_implementation: str
    found: dict[tuple[int, Mechanism], Peak] = field(default_factory=dict)

    def add(self, *, node: OpNode, abs_max: float, mechanism: Mechanism, place: Location) -> None:
        """Keeps the larger."""
        self._keep((place.order, mechanism), Peak(abs_max=abs_max, node=node, place=place))

    def merge(self, other: Peaks) -> Peaks:
        """The peaks of both sets of batches together."""
        both = replace(self, found=dict(self.found))
        for key, peak in other.found.items():
            both._keep(key, peak)  # noqa: SLF001  one of us
        return both

    def _keep(self, key: tuple[int, Mechanism], peak: Peak) -> None:
        known = self.found.get(key)
        if known is None or peak.abs_max > known.abs_max:
            self.found[key] = peak


_IMPLEMENTATION_MATTERS = frozenset({Mechanism.ATTENTION_SCORES, Mechanism.MASK})


def headroom_rows(runs: Iterable[Peaks]) -> tuple[Headroom, ...]:
    """A row per op that is some dtype's largest of its mechanism in its unit, in model order.

    Scores and masks count for the attention implementation that materialises them; every other
    mechanism counts for all.
    """
    rows: dict[tuple[int, int, str | None, str, str, Mechanism], dict[Dtype, Peak]] = {}
    best: dict[tuple[int, Mechanism, str | None, Dtype], Peak] = {}
    for run in runs:
        for (order, mechanism), peak in run.found.items():
            attn = run.attn_implementation if mechanism in _IMPLEMENTATION_MATTERS else None
            key = (order, mechanism, attn, run.dtype)
            if key not in best or peak.abs_max > best[key].abs_max:
                best[key] = peak
    for (order, mechanism, attn, dtype), peak in best.items():
        node = peak.node
        name = (order, node.index, attn, node.module, node.op, mechanism)
        rows.setdefault(name, {})[dtype] = peak
    return tuple(
        _headroom_row(mechanism, attn, peaks)
        for (_, _, attn, _, _, mechanism), peaks in sorted(
            rows.items(), key=lambda each: (each[0][0], each[0][1], each[0][2] or "")
        )
    )


def _headroom_row(mechanism: Mechanism, attn: str | None, peaks: dict[Dtype, Peak]) -> Headroom:
    peak = max(peaks.values(), key=lambda each: each.abs_max)
    bits = {
        dtype.value: left
        for dtype, of_dtype in peaks.items()
        if (left := headroom_bits(of_dtype.abs_max, dtype)) is not None
    }
    return Headroom(
        module=peak.node.module,
        layer=peak.place.layer,
        section=peak.place.section,
        op=peak.node.op,
        source=peak.node.source,
        source_file=peak.node.source_file,
        mechanism=mechanism,
        attn_implementation=attn,
        abs_max=peak.abs_max,
        headroom_bits=bits,
    )
