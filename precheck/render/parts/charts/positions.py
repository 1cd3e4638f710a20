"""How accuracy and headroom change with the distance from the first token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.precision import Dtype, headroom_bits
from precheck.records.quantities import bits, magnitude, nats
from precheck.render.parts.charts.chart import Chart, Row, chart, cut
from precheck.render.parts.charts.lines import domain, encoding, name, ticks
from precheck.render.parts.position_table import runs_by_position, tight_at

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.records.outcomes.positions import PositionFigures
    from precheck.records.report import Report, Run

_HEIGHT = 280
_AT = {"field": "position", "type": "quantitative"}


def position_charts(report: Report) -> Iterator[Chart]:
    """KL divergence by position, then headroom in float16; none without a long text."""
    runs = runs_by_position(report)
    if (drawn := _divergence(runs)) is not None:
        yield drawn
    halves = [run for run in runs if run.dtype is Dtype.FLOAT16]
    widest = max(halves, key=lambda run: len(_mechanisms(run)), default=None)
    if widest is not None and (drawn := _headroom(widest)) is not None:
        yield drawn


def _divergence(runs: Sequence[Run]) -> Chart | None:
    values: list[Row] = [
        {
            "position": row.end,
            "run": name(run),
            "size": row.kl_divergence,
            "said": f"{_place(row)}, {name(run)}: {nats(row.kl_divergence)} nat",
        }
        for run in runs
        for row in run.positions
        if row.kl_divergence
    ]
    if not values:
        return None
    channels = encoding(runs)
    channels["x"] = _axis(values)
    low, high = domain([value["size"] for value in values], top=0.0)
    channels["y"]["scale"]["domain"] = [low, high]
    channels["y"] |= {
        "title": "KL divergence, nat (log scale)",
        "axis": {"format": "~e", "values": ticks(low, high)},
    }
    worst = max(values, key=lambda value: value["size"])
    return chart(
        "KL divergence by position",
        summary=f"Each point is the mean up to that token. Largest: {worst['said']}.",
        spec=_lines(values, channels),
    )


def _headroom(run: Run) -> Chart | None:
    names = _mechanisms(run)
    values: list[Row] = [
        {
            "position": row.end,
            "mechanism": cut(mechanism.replace("_", " ")),
            "bits": left,
            "said": f"{_place(row)}, {mechanism.replace('_', ' ')}: {magnitude(abs_max)}, "
            f"{bits(left)} bits left",
        }
        for row in run.positions
        for mechanism, abs_max in row.abs_max.items()
        if (left := headroom_bits(abs_max, Dtype.FLOAT16)) is not None and mechanism in names
    ]
    if not values:
        return None
    channels = {
        "x": _axis(values),
        "y": {"field": "bits", "type": "quantitative", "title": "bits of headroom in float16"},
        "color": {"field": "mechanism", "type": "nominal", "title": None},
        "description": {"field": "said"},
    }
    tight = [(row, at) for row in run.positions if (at := tight_at(row, Dtype.FLOAT16)) is not None]
    row, least = min(tight, key=lambda pair: pair[1].left)
    return chart(
        "Headroom in float16 by position",
        summary=f"Of {name(run)}. Least: {bits(least.left)} bits, "
        f"{least.mechanism.replace('_', ' ')}, {_place(row)}.",
        spec=_lines(values, channels),
    )


def _lines(values: list[Row], channels: Row) -> Row:
    line = {key: channel for key, channel in channels.items() if key != "description"}
    points = {key: channel for key, channel in channels.items() if key != "strokeWidth"}
    point = {"type": "point", "filled": True, "size": 30, "opacity": 1}
    return {
        "height": _HEIGHT,
        "data": {"values": values},
        "layer": [
            {"mark": {"type": "line", "aria": False}, "encoding": line},
            {"mark": point, "encoding": points},
        ],
    }


def _axis(values: list[Row]) -> Row:
    places = sorted({value["position"] for value in values})
    return {
        **_AT,
        "title": "tokens (log scale)",
        "scale": {"type": "log", "base": 2, "nice": False, "domain": [places[0], places[-1]]},
        "axis": {"format": ",", "values": [place for place in places if place & (place - 1) == 0]},
    }


def _mechanisms(run: Run) -> set[str]:
    return {name for row in run.positions for name in row.abs_max}


def _place(row: PositionFigures) -> str:
    return f"tokens {row.start:,} to {row.end - 1:,}"
