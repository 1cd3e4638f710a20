"""How large norms and biases are, and what no text exceeds because of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.precision import Dtype
from precheck.records.quantities import magnitude
from precheck.render.parts.columns import Column
from precheck.render.parts.words import DASH, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from precheck.records.outcomes.layer_bounds import LayerBound
    from precheck.records.report import Report
    from precheck.records.stored import VectorRange

_MOST_KINDS, _MOST_LAYERS = 12, 12
"""Rows that a person reads; the JSON report has all of them."""


def small_tensor_tables(report: Report) -> Iterator[tuple[str, list[Column]]]:
    """A title and columns for each table that there is something to say in."""
    small = report.checkpoint.small
    if small is not None and small.vectors:
        rows = sorted(small.vectors, key=lambda row: -row.abs_max)[:_MOST_KINDS]
        more = len(small.vectors) - len(rows)
        title = f"Norms and biases{f', the largest {len(rows)} kinds' if more else ''}"
        yield title, _vectors(rows)
    if report.layer_bounds:
        limit = magnitude(Dtype.FLOAT16.limits.max)
        title = f"Proved for every text, per decoder layer: at most (float16 ends at {limit})"
        yield title, _bounds(_spread(report.layer_bounds))


def _vectors(rows: Sequence[VectorRange]) -> list[Column]:
    return [
        Column(header="vectors", cells=[Text(shown(row.kind)) for row in rows], justify="left"),
        Column(header="abs max", cells=[Text(magnitude(row.abs_max)) for row in rows]),
        Column(header="median", cells=[Text(magnitude(row.median_abs_max)) for row in rows]),
        Column(
            header="largest in",
            cells=[Text(shown(_place(row))) for row in rows],
            justify="left",
            rank=1,
        ),
    ]


def _place(row: VectorRange) -> str:
    """What stands for the ``*`` in the largest one's name: its layer."""
    parts = zip(row.kind.split("."), row.largest.split("."), strict=False)
    return ".".join(own for pattern, own in parts if pattern == "*") or DASH


def _spread(rows: Sequence[LayerBound]) -> list[LayerBound]:
    """As many as there is room for, at even distances, and the one with the largest scores."""
    if len(rows) <= _MOST_LAYERS:
        return list(rows)
    last = len(rows) - 1
    places = {place * last // (_MOST_LAYERS - 1) for place in range(_MOST_LAYERS)}
    places.add(max(range(len(rows)), key=lambda place: rows[place].scores or 0.0))
    return [rows[place] for place in sorted(places)]


def _bounds(rows: Sequence[LayerBound]) -> list[Column]:
    figures: tuple[tuple[str, Callable[[LayerBound], float | None]], ...] = (
        ("raw scores", lambda row: row.scores),
        ("scaled scores", lambda row: row.scaled_scores),
        ("the layer adds", lambda row: row.added),
        ("added so far", lambda row: row.added_so_far),
        ("residual stream", lambda row: row.residual),
    )
    columns = [Column(header="layer", cells=[Text(str(row.layer)) for row in rows])]
    for rank, (header, figure) in enumerate(figures):
        values = [figure(row) for row in rows]
        if any(value is not None for value in values):
            columns.append(Column(header=header, cells=list(map(_cell, values)), rank=rank))
    return columns


def _cell(value: float | None) -> Text:
    if value is None:
        return Text(DASH)
    return Text(magnitude(value), style="" if value <= Dtype.FLOAT16.limits.max else "yellow")
