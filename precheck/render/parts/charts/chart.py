"""What all charts share: a drawing with its words, and how its texts are cut."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from precheck.render.parts.charts.drawing import drawn
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_TICKS = 16
_LONGEST = 44
"""Characters of a run or a mechanism in a legend."""

Row = dict[str, Any]
"""A mark's values by the names of their fields; or a layer of a drawing."""


class Chart(NamedTuple):
    """A drawing, and what it says in a few sentences for readers who cannot see it."""

    title: str
    summary: str
    svg: str


def chart(title: str, *, summary: str, spec: Row) -> Chart:
    """The chart of a Vega-Lite specification."""
    return Chart(title=title, summary=summary, svg=drawn(spec, title=title))


def cut(text: str) -> str:
    """Cut here: Vega would cut between the halves of a surrogate pair, and fail."""
    text = shown(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\N{HORIZONTAL ELLIPSIS}"


def thinned(ticks: Sequence[float]) -> list[float]:
    """As many of the ticks of an axis as have room for their labels."""
    return list(ticks)[:: math.ceil(len(ticks) / _MOST_TICKS) or 1]
