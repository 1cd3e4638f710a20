"""Where each segment of a forward is in the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.blame.graph import SegmentRole
from precheck.measure.blame.located_producer import Location
from precheck.records.traces import Section

if TYPE_CHECKING:
    from precheck.checkpoint.architecture import Unit
    from precheck.measure.blame.unit_call import UnitCall
    from precheck.measure.watch.segment import Segment


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocatedSegment:
    """A segment of a run, the same segment of its reference, and where both are in the model."""

    segment: Segment
    reference: Segment | None
    """None in a float32 run, and where the reference did not pass this segment."""
    location: Location
    role: SegmentRole
    call: UnitCall | None
    """The call of the unit; between two units, that of the last one."""


class SegmentCounter:
    """Counts the segments and layers that a forward has passed."""

    def __init__(self) -> None:
        self._num_segments = 0
        self._num_layers: dict[Section, int] = {}

    def unit_location(self, unit: Unit) -> Location:
        """The location of a unit that the forward has not passed yet."""
        layer = self._num_layers.get(unit.section, 0) if _has_row(unit) else None
        return Location(order=self._num_segments, layer=layer, section=unit.section)

    def unit_role(self, call: UnitCall) -> SegmentRole:
        """The role of that unit, after it ran."""
        return call.role(sum(self._num_layers.values()))

    def between_location(self, section: Section) -> Location:
        """The location of a segment between two units."""
        return Location(order=self._num_segments, layer=None, section=section)

    def between_role(self, section: Section) -> SegmentRole:
        """The role of a segment between two units."""
        if not self._num_layers:
            return SegmentRole.EMBEDDING
        return SegmentRole.HEAD if section is Section.HEAD else SegmentRole.BETWEEN

    def pass_unit(self, unit: Unit) -> None:
        """The forward has left a unit."""
        if _has_row(unit):
            self._num_layers[unit.section] = self._num_layers.get(unit.section, 0) + 1
        self._num_segments += 1

    def pass_between(self) -> None:
        """The forward has entered the next unit, or ended."""
        self._num_segments += 1


def _has_row(unit: Unit) -> bool:
    """Whether the report has a row for it: layers, and what projects the output of a tower."""
    return unit.is_block or unit.section is Section.PROJECTOR
