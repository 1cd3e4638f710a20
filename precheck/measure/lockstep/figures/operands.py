"""The largest operands of every layer, batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from precheck.measure.blame.unit_call import routed_nodes
from precheck.measure.watch.fused_scores import value_sum
from precheck.records.sizes import Operand, OperandPeak
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from precheck.measure.blame.located_producer import Location
    from precheck.measure.blame.operand_nodes import OperandNodes
    from precheck.measure.watch.segment import OpNode, Segment

_SECTIONS = list(Section)


class _Place(NamedTuple):
    """An operand of one layer, or of one section outside of all layers."""

    section: Section
    layer: int | None
    operand: Operand


class _Peak(NamedTuple):
    value: float
    module: str


@dataclass(slots=True)
class OperandTotals:
    """The operands of a float32 run."""

    found: dict[_Place, _Peak] = field(default_factory=dict)

    def add(
        self, segment: Segment, nodes: OperandNodes, *, location: Location, fused: dict[int, float]
    ) -> None:
        """Adds those of a segment.

        Args:
            segment: of a float32 run, its numbers fetched.
            nodes: its operations by what they give.
            location: of the segment.
            fused: the largest raw score of fused attention, by its operation's index.
        """
        for operand, node, value in _operands(segment, nodes, fused):
            place = _Place(location.section, location.layer, operand)
            self._keep_larger(place, _Peak(value, node.module))

    def merge(self, other: OperandTotals) -> OperandTotals:
        """What both sets of batches, or runs, found."""
        both = OperandTotals(dict(self.found))
        for place, peak in other.found.items():
            both._keep_larger(place, peak)
        return both

    def _keep_larger(self, place: _Place, peak: _Peak) -> None:
        known = self.found.get(place)
        if known is None or peak.value > known.value:
            self.found[place] = peak

    @property
    def rows(self) -> tuple[OperandPeak, ...]:
        """A row for each operand of each layer, in the order of sections and layers."""
        in_order = sorted(
            self.found.items(),
            key=lambda pair: (
                _SECTIONS.index(pair[0].section),
                math.inf if pair[0].layer is None else pair[0].layer,
                list(Operand).index(pair[0].operand),
            ),
        )
        return tuple(
            OperandPeak(
                operand=place.operand,
                layer=place.layer,
                section=place.section,
                module=peak.module,
                value=peak.value,
            )
            for place, peak in in_order
        )


def _operands(
    segment: Segment, nodes: OperandNodes, fused: dict[int, float]
) -> Iterator[tuple[Operand, OpNode, float]]:
    yield from _recorded(segment, nodes)
    yield from _results(segment, nodes)
    for call in segment.fused:
        raw = fused.get(call.node.index)
        if raw is not None:
            yield Operand.SCORES, call.node, raw * call.factor
            sums = value_sum(call)
            if sums is not None:
                yield Operand.VALUE_SUM, call.node, sums


def _recorded(segment: Segment, nodes: OperandNodes) -> Iterator[tuple[Operand, OpNode, float]]:
    """What was recorded while operations ran, where it turned out to be what it seemed."""
    scales, routed = _scales(segment, nodes), routed_nodes(segment)
    for operand, node, value in segment.operands:
        if operand is Operand.QUERY_KEY_PRODUCT:
            if node.index in scales:
                yield operand, node, value * scales[node.index]
        elif operand is not Operand.NORM_MEAN_SQUARE or node.index in nodes.fused_norms:
            yield operand, node, value
        if operand is Operand.LINEAR_INPUT and node.index in routed:
            yield Operand.EXPERT_INPUT, node, value


def _results(segment: Segment, nodes: OperandNodes) -> Iterator[tuple[Operand, OpNode, float]]:
    """The operands that are results of operations."""
    results: tuple[tuple[Operand, Iterable[int]], ...] = (
        (Operand.LINEAR_OUTPUT, nodes.linear_outputs),
        (Operand.BRANCH, nodes.branches),
        (Operand.NORM_MEAN_SQUARE, nodes.mean_squares),
        (Operand.SCORES, nodes.scores.values()),
    )
    for operand, indices in results:
        for index in indices:
            node = segment.nodes[index]
            if node.abs_max is not None:
                yield operand, node, node.abs_max


def _scales(segment: Segment, nodes: OperandNodes) -> dict[int, float]:
    """What scores are multiplied by, by the index of the operation that gives raw ones."""
    scales = {call.node.index: call.factor for call in segment.fused}
    for raw, scaled in nodes.scores.items():
        before, after = segment.nodes[raw].abs_max, segment.nodes[scaled].abs_max
        if before and after is not None:
            scales[raw] = after / before
    return scales
