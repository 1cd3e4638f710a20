"""Headroom as an interval: what some input reached, and what no input exceeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.precision import headroom_bits
from precheck.records.tightest import bits_left

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.records.configuration import Configuration
    from precheck.records.mechanism import Mechanism
    from precheck.records.traces import Headroom


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Where the headroom of a row lies in one run, in bits."""

    row: Headroom
    found: float
    """What the largest value that was measured leaves."""
    proved: float | None
    """What the largest value that any input could reach leaves; None: no bound is known."""
    status: ProofStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismIntervals:
    """All places of a run in which one mechanism may overflow."""

    mechanism: Mechanism
    intervals: tuple[Interval, ...]

    @property
    def open(self) -> tuple[Interval, ...]:
        """Those that are not proved, the tightest first."""
        rest = (each for each in self.intervals if each.status is not ProofStatus.PROVED)
        return tuple(sorted(rest, key=lambda each: each.found))

    @property
    def num_proved(self) -> int:
        """Places that no input can make overflow, given finite inputs."""
        return len(self.intervals) - len(self.open)


def intervals_of(
    rows: Iterable[Headroom], configuration: Configuration
) -> tuple[MechanismIntervals, ...]:
    """What is known of every mechanism of a run, in the order of the forward.

    Empty where bounds were not computed. Several rows of one place are one: the tightest.
    """
    by_place: dict[tuple[Mechanism, str, int | None], Interval] = {}
    for row in rows:
        found, status = bits_left(row, configuration), row.status.get(configuration.dtype)
        if found is None or status is None:
            continue
        bound = row.bound_abs_max.get(configuration.dtype)
        proved = None if bound is None else headroom_bits(bound, configuration.dtype)
        interval = Interval(row=row, found=found, proved=proved, status=status)
        place = (row.mechanism, str(row.section), row.layer)
        known = by_place.get(place)
        if known is None or found < known.found:
            by_place[place] = interval
    mechanisms = dict.fromkeys(mechanism for mechanism, _, _ in by_place)
    return tuple(
        MechanismIntervals(
            mechanism=mechanism,
            intervals=tuple(each for place, each in by_place.items() if place[0] is mechanism),
        )
        for mechanism in mechanisms
    )
