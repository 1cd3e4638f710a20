"""The report's rows of overflows, from the producers of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.mechanism import Mechanism
from precheck.records.traces import Overflow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.measure.blame.found import LocatedProducer


def overflow_rows(found: Iterable[tuple[LocatedProducer, bool]]) -> tuple[Overflow, ...]:
    """One row per (module, op, source) in model order, of producers and whether each is absorbed.

    Counts add up, magnitudes take the maximum, and a row is absorbed only if every producer is.
    """
    rows: dict[tuple[str, str, str], list[tuple[LocatedProducer, bool]]] = {}
    for each in sorted(found, key=lambda pair: _order(pair[0])):
        rows.setdefault(each[0].key, []).append(each)
    return tuple(_row(group) for group in rows.values())


def _order(found: LocatedProducer) -> tuple[int, int]:
    return (found.place.order, found.producer.node.index)


def _row(group: list[tuple[LocatedProducer, bool]]) -> Overflow:
    first = next((each for each, is_absorbed in group if not is_absorbed), group[0][0])
    node = first.producer.node
    needed = [
        each.producer.reference_abs_max
        for each, _ in group
        if each.producer.reference_abs_max is not None
    ]
    return Overflow(
        module=node.module,
        layer=first.place.layer,
        section=first.place.section,
        op=node.op,
        source=node.source,
        source_file=node.source_file,
        code=first.code,
        mechanism=first.mechanism,
        reference_abs_max=max(needed, default=None),
        limit=first.producer.limit,
        num_elements=sum(each.producer.num_elements for each, _ in group),
        probes=tuple(dict.fromkeys(name for each, _ in group for name in each.probes)),
        partial_sum=node.sum_bound if first.mechanism is Mechanism.ACCUMULATION else None,
        first_positions=_first_positions([each.first_positions for each, _ in group]),
        absorbed=all(is_absorbed for _, is_absorbed in group),
    )


def _first_positions(found: list[dict[str, int]]) -> dict[str, int]:
    first: dict[str, int] = {}
    for each in found:
        for probe, position in each.items():
            first[probe] = min(position, first.get(probe, position))
    return first
