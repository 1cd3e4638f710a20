"""How many bits every mechanism has left in float16, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.records.precision import Dtype, headroom_bits
from precheck.records.quantities import bits, magnitude
from precheck.render.parts.charts.chart import Chart, Row, chart, cut, thinned
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from precheck.records.report import Report
    from precheck.records.traces import Headroom, Section

_ROW = 24
_MOST_NUMBERS = 16
"""Layers of which each cell has room for its number."""


class _Cell(NamedTuple):
    left: float
    row: Headroom
    is_measured: bool
    """Whether float16 got there; else the values are those of the other runs."""


def headroom(report: Report, section: Section) -> Chart | None:
    """The chart of a part of the model; None where nothing runs in float16."""
    cells = _cells(report, section)
    if not cells:
        return None
    values = [_value(cell) for cell in cells]
    layers = sorted({value["layer"] for value in values})
    spec = {
        "height": _ROW * len({value["mechanism"] for value in values}),
        "data": {"values": values},
        "layer": _marks(layers),
    }
    least = min(cells, key=lambda cell: cell.left)
    summary = [f"Tightest: {_said(least)}.", *_outside(report, than=least)]
    if not all(cell.is_measured for cell in cells):
        summary.append("In parentheses: float16 had broken before; from the other runs' values.")
    title = f"Headroom in float16 in each {section} layer"
    return chart(title, summary=" ".join(summary), spec=spec)


def _cells(report: Report, section: Section) -> list[_Cell]:
    """The tightest row of each mechanism in each layer."""
    rows = [row for row in report.headroom if row.section is section and row.layer is not None]
    in_float16 = {_mechanism(row) for row in rows if Dtype.FLOAT16 in row.headroom_bits}
    cells: dict[tuple[str, int | None], _Cell] = {}
    for row in rows:
        measured = row.headroom_bits.get(Dtype.FLOAT16)
        left = measured
        if left is None and _mechanism(row) in in_float16 and not _got_there(report, row):
            left = headroom_bits(row.abs_max, Dtype.FLOAT16)
        if left is None:
            continue
        place = (_mechanism(row), row.layer)
        cell = _Cell(left, row, measured is not None)
        other = cells.get(place)
        # what was measured counts before what was not
        if other is None or (cell.is_measured, -left) > (other.is_measured, -other.left):
            cells[place] = cell
    return list(cells.values())


def _got_there(report: Report, row: Headroom) -> bool:
    """Whether a float16 run with this attention was whole when it came to the layer."""
    return any(
        layer.section is row.section and layer.index == row.layer and layer.is_finite
        for run in report.runs
        if run.dtype is Dtype.FLOAT16 and row.attn_implementation in {None, run.attn_implementation}
        for layer in run.layers
    )


def _value(cell: _Cell) -> Row:
    number = bits(cell.left)
    return {
        "layer": cell.row.layer,
        "mechanism": _mechanism(cell.row),
        "bits": cell.left,
        "number": number if cell.is_measured else f"({number})",
        "said": _said(cell),
    }


def _said(cell: _Cell) -> str:
    row, left = cell.row, bits(cell.left)
    place = f"{shown(row.module)}, {_mechanism(row)}: {magnitude(row.abs_max)}"
    return f"{place}, {left} bits {'left' if cell.is_measured else 'would be left'}"


def _outside(report: Report, *, than: _Cell) -> list[str]:
    """What is tighter than all of the chart, and in no layer."""
    outside = [
        _Cell(left, row, is_measured=True)
        for row in report.headroom
        if row.layer is None and (left := row.headroom_bits.get(Dtype.FLOAT16)) is not None
    ]
    least = min(outside, key=lambda cell: cell.left, default=than)
    return [f"Outside the layers less is left: {_said(least)}."] if least.left < than.left else []


def _marks(layers: list[int]) -> list[Row]:
    """A coloured cell for each layer and mechanism, with its number where there is room."""
    ticks = {"labelAngle": 0, "values": thinned(layers)}
    axes = {
        "x": {"field": "layer", "type": "ordinal", "title": "layer", "axis": ticks},
        "y": {"field": "mechanism", "type": "nominal", "title": None, "axis": {"labelLimit": 0}},
    }
    colour = {
        "field": "bits",
        "type": "quantitative",
        "title": "bits of headroom in float16",
        "scale": {
            "type": "threshold",
            "domain": [0, 1, 4],
            "range": ["var(--bad)", "var(--warn)", "var(--fair)", "var(--good)"],
        },
        "legend": {"symbolType": "square"},
    }
    cell = {
        "mark": {"type": "rect", "stroke": "var(--page)"},
        "encoding": {**axes, "color": colour, "description": {"field": "said"}},
    }
    number = {
        "mark": {"type": "text", "color": "var(--on-cell)", "fontSize": 12},
        "encoding": {**axes, "text": {"field": "number"}},
    }
    return [cell, number] if len(layers) <= _MOST_NUMBERS else [cell]


def _mechanism(row: Headroom) -> str:
    only = "" if row.attn_implementation is None else f" ({shown(row.attn_implementation)})"
    return cut(f"{row.mechanism.replace('_', ' ')}{only}")
