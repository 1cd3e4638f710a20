"""Tables that never wrap: where the width is too small, the least important columns go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rich.table import Table
from rich.text import Text

from precheck.render.parts.words import DASH

if TYPE_CHECKING:
    from collections.abc import Sequence

GAP = 2
"""Blank columns between two columns, and before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column with all its cells; ``rank`` 0 stays, the highest rank goes first."""

    header: str
    cells: Sequence[Text]
    rank: int = 0
    justify: Literal["left", "right"] = "right"

    @property
    def width(self) -> int:
        """Cells a terminal needs for it."""
        lines = [Text(line) for line in self.header.split("\n")]
        return max(cell.cell_len for cell in (*lines, *self.cells))

    @property
    def is_empty(self) -> bool:
        """Whether no cell says anything."""
        return not any(cell.plain.strip(DASH) for cell in self.cells)


def filled(columns: Sequence[Column]) -> list[Column]:
    """The columns that say something, and those that always stay."""
    return [column for column in columns if not column.is_empty or column.rank == 0]


def table(columns: Sequence[Column], *, width: int) -> Table:
    """The columns that fit, each as wide as it needs to be; the first ones are kept longest."""
    kept = filled(columns)
    while _needed(kept) > width and any(column.rank for column in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    grid = Table(
        box=None, pad_edge=False, padding=(0, 0, 0, GAP), header_style="dim", show_edge=False
    )
    for column in kept:
        grid.add_column(
            Text(column.header), justify=column.justify, no_wrap=True, overflow="ellipsis"
        )
    for row in zip(*(column.cells for column in kept), strict=True):
        grid.add_row(*row)
    return grid


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.width + GAP for column in columns)
