"""The operations that broke, on the chart of sizes: what they had to hold, and in which layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.records.mechanism import Mechanism
from precheck.records.quantities import listed, magnitude
from precheck.render.parts.charts.lines import name
from precheck.render.parts.stored_formats.groups import plain_runs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report, Run
    from precheck.records.traces import Overflow, Section
    from precheck.render.parts.charts.chart import Row

_NEAR = 10
"""Pixels between a mark and its label."""
_PLURAL = ("break", "absorb an overflow")


@dataclass(frozen=True, slots=True)
class Culprit:
    """One operation, and the runs that it broke."""

    overflow: Overflow
    size: float
    """What it had to hold."""
    runs: tuple[str, ...]

    def is_in(self, section: Section) -> bool:
        """Whether it happened inside a layer of this part of the model."""
        return self.overflow.section is section and self.overflow.layer is not None

    @property
    def label(self) -> str:
        """What it is and how large."""
        what = self.overflow.mechanism.replace("_", " ")
        absorbed = ", absorbed" if self.overflow.absorbed else ""
        return f"{what} {magnitude(self.size)}{absorbed}"


def culprits(report: Report) -> list[Culprit]:
    """The first operation that broke in each run, once for those that break alike."""
    runs: dict[tuple[Section, int | None, Mechanism, float], list[Run]] = {}
    for run in plain_runs(report):
        overflow = run.first_overflow
        if overflow is not None and (size := _size(overflow)):
            place = (overflow.section, overflow.layer, overflow.mechanism, size)
            runs.setdefault(place, []).append(run)
    return [
        Culprit(overflow, size, tuple(name(run) for run in alike))
        for (*_, size), alike in runs.items()
        if (overflow := alike[0].first_overflow) is not None
    ]


def _size(overflow: Overflow) -> float | None:
    """The value that did not fit; None where none was too large, as in a fully masked row."""
    if overflow.mechanism is Mechanism.MASK and not overflow.is_out_of_range:
        return None
    return overflow.partial_sum or overflow.reference_abs_max


def culprit_marks(marks: list[Culprit], *, layers: list[int]) -> Iterator[Row]:
    """A diamond for each, with its label on the side where there is room."""
    middle = (layers[0] + layers[-1]) / 2
    rows: list[Row] = [
        {
            "layer": mark.overflow.layer,
            "size": mark.size,
            "label": mark.label,
            "said": f"{listed(mark.runs, most=3)}: {mark.label}",
        }
        for mark in marks
    ]
    place = {
        "x": {"field": "layer", "type": "quantitative"},
        "y": {"field": "size", "type": "quantitative"},
    }
    yield {
        "data": {"values": rows},
        "mark": {
            "type": "point",
            "shape": "diamond",
            "filled": True,
            "size": 140,
            "opacity": 1,
            "color": "var(--bad)",
        },
        "encoding": {**place, "description": {"field": "said"}},
    }
    for align, sign in (("left", 1), ("right", -1)):
        side = [row for row in rows if (row["layer"] <= middle) == (align == "left")]
        yield {
            "data": {"values": side},
            "mark": {
                "type": "text",
                "align": align,
                "baseline": "bottom",
                "dx": -sign * _NEAR,
                "dy": -_NEAR,
                "fontWeight": "bold",
                "color": "var(--bad)",
            },
            "encoding": {**place, "text": {"field": "label"}},
        }


def sentences(report: Report, section: Section) -> Iterator[str]:
    """Which runs break, and where, inside these layers or elsewhere."""
    for mark in culprits(report):
        overflow = mark.overflow
        names = listed(mark.runs, most=3)
        verb = ("breaks", "absorbs an overflow") if len(mark.runs) == 1 else _PLURAL
        place = "outside the layers"
        if overflow.layer is not None:
            place = f"inside {overflow.section} layer {overflow.layer}"
        drawn = " (diamond)" if mark.is_in(section) else ""
        what = f"{overflow.mechanism.phrase}, {magnitude(mark.size)}"
        yield f"{names} {verb[overflow.absorbed]} {place}{drawn}: {what}."
