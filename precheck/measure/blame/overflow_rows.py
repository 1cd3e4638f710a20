"""The report's rows of overflows, from the producers of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.mechanism import Mechanism
from precheck.records.traces import Overflow

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.measure.blame.located_producer import LocatedProducer


def overflow_rows(producers: Iterable[tuple[LocatedProducer, bool]]) -> tuple[Overflow, ...]:
    """One row per (module, op, source) in model order.

    Args:
        producers: each with whether it is absorbed.
    """
    groups: dict[tuple[str, str, str], list[tuple[LocatedProducer, bool]]] = {}
    for located, is_absorbed in sorted(producers, key=lambda pair: _order(pair[0])):
        groups.setdefault(located.key, []).append((located, is_absorbed))
    return tuple(overflow_row(group) for group in groups.values())


def overflow_row(group: list[tuple[LocatedProducer, bool]]) -> Overflow:
    """The row of producers that share module, op and source line.

    Counts add up, magnitudes take the maximum, and a row is absorbed only if every producer is.
    """
    first = next((located for located, is_absorbed in group if not is_absorbed), group[0][0])
    node = first.producer.node
    magnitudes = [
        located.producer.reference_abs_max
        for located, _ in group
        if located.producer.reference_abs_max is not None
    ]
    return Overflow(
        module=node.module,
        layer=first.location.layer,
        section=first.location.section,
        op=node.op,
        source=node.source,
        source_file=node.source_file,
        code=first.code,
        mechanism=first.mechanism,
        reference_abs_max=max(magnitudes, default=None),
        limit=first.producer.limit,
        num_elements=sum(located.producer.num_elements for located, _ in group),
        probes=tuple(dict.fromkeys(name for located, _ in group for name in located.probes)),
        partial_sum=node.sum_bound if first.mechanism is Mechanism.ACCUMULATION else None,
        first_positions=_first_positions(group),
        absorbed=all(is_absorbed for _, is_absorbed in group),
    )


def _order(located: LocatedProducer) -> tuple[int, int]:
    return (located.location.order, located.producer.node.index)


def _first_positions(group: list[tuple[LocatedProducer, bool]]) -> dict[str, int]:
    first: dict[str, int] = {}
    for located, _ in group:
        for probe, position in located.first_positions.items():
            first[probe] = min(position, first.get(probe, position))
    return first
