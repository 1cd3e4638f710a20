"""Every layer of every run: the largest value of the residual stream."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.render.parts.columns import GAP, Column, table
from precheck.render.parts.culprit import size_cell
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from precheck.records.report import Report, Run
    from precheck.records.traces import Section


def layer_tables(report: Report, *, width: int) -> Iterator[Table]:
    """As many tables, one below the other, as it takes to show all runs at this width."""
    columns = layer_columns(report)
    if not columns:
        return
    first, *others = columns
    shown_together: list[Column] = []
    for column in others:
        taken = sum(shown_column.width + GAP for shown_column in (first, *shown_together, column))
        if shown_together and taken > width:
            yield table((first, *shown_together), width=width)
            shown_together = []
        shown_together.append(column)
    yield table((first, *shown_together), width=width)


def layer_columns(report: Report) -> list[Column]:
    """The layers, and a column for every run without a format; none where none was measured."""
    runs = plain_runs(report)
    places = list(
        dict.fromkeys((layer.section, layer.index) for run in runs for layer in run.layers)
    )
    if not places:
        return []
    names = [Text(f"{section} {index}") for section, index in places]
    first = Column(header="\nlayer", cells=names, justify="left")
    return [first, *(_column(run, places=places) for run in runs)]


def _column(run: Run, *, places: list[tuple[Section, int]]) -> Column:
    traces = {(layer.section, layer.index): layer for layer in run.layers}
    return Column(
        header=f"{run.dtype}\n{shown(run.attn_implementation)}",
        cells=[size_cell(traces.get(place)) for place in places],
    )
