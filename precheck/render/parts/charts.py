"""The charts of a report: range, error and headroom over the layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from precheck.records.loss import relative_error
from precheck.records.precision import Accumulation, Dtype
from precheck.records.quantities import bits, magnitude, percent
from precheck.render.parts.drawing import WIDTH, drawn
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.configuration import Configuration
    from precheck.records.report import Report, Run
    from precheck.records.traces import Headroom, Section

_HEIGHT = 280
_ROW = 24
_LONGEST_NAME = 44
"""Characters of a run or a mechanism in a legend."""
_MOST_NUMBERS = 24
"""Layers of which each cell of the headroom chart has room for its number."""

_Row = dict[str, Any]
"""A mark's values by the names of their fields."""

_DASHES = ([1, 0], [6, 4], [2, 2], [8, 3, 2, 3])


class Chart(NamedTuple):
    """A drawing, and what it says in one sentence for readers who cannot see it."""

    title: str
    summary: str
    svg: str


def charts(report: Report) -> Iterator[Chart]:
    """The charts that the report has figures for."""
    sections = dict.fromkeys(layer.section for run in report.runs for layer in run.layers)
    for section in sections:
        yield _magnitudes(report, section)
        if any(
            relative_error(layer)
            for run in _approximate(report)
            for layer in run.layers
            if layer.section is section
        ):
            yield _errors(report, section)
    rows = [row for row in report.headroom if Dtype.FLOAT16 in row.headroom_bits]
    if any(row.layer is not None for row in rows):
        yield _headroom([row for row in rows if row.layer is not None])


def _magnitudes(report: Report, section: Section) -> Chart:
    limit = Dtype.FLOAT16.limits.max
    values = _sizes(report, section)
    broken = _nonfinite(report, section, at=limit)
    spec = _lines(report, values, section=section, title="largest value (log scale)")
    spec["layer"] += [*_limit_marks(limit), _crosses(report, broken)]
    largest = max((value["size"] for value in values), default=0.0)
    where = "some exceed float16's maximum" if largest > limit else "all of them fit in float16"
    summary = f"The largest value after any {section} layer is {magnitude(largest)}; {where}."
    if broken:
        summary += " A cross marks a layer whose output is not finite."
    return _chart(f"Largest value after each {section} layer", summary, spec)


def _sizes(report: Report, section: Section) -> list[_Row]:
    return [
        {
            "layer": layer.index,
            "run": _name(run),
            "size": layer.abs_max,
            "said": f"{section} layer {layer.index}, {_name(run)}: {magnitude(layer.abs_max)}",
        }
        for run in report.runs
        for layer in run.layers
        if layer.section is section and layer.abs_max
    ]


def _nonfinite(report: Report, section: Section, *, at: float) -> list[_Row]:
    return [
        {
            "layer": layer.index,
            "run": _name(run),
            "size": at,
            "said": f"{section} layer {layer.index}, {_name(run)}: not finite",
        }
        for run in report.runs
        for layer in run.layers
        if layer.section is section and not layer.is_finite
    ]


def _limit_marks(limit: float) -> list[_Row]:
    """A line at float16's maximum, and the others' in words: they are too far away to draw."""
    line = {"size": limit, "said": f"float16 maximum: {magnitude(limit)}"}
    highest = magnitude(Dtype.FLOAT32.limits.max)
    above = {"said": f"\N{UPWARDS ARROW} bfloat16 and float32 maximum: {highest}"}
    size = {"field": "size", "type": "quantitative"}
    label = {"type": "text", "baseline": "bottom"}
    return [
        {
            "data": {"values": [line]},
            "mark": {"type": "rule", "color": "var(--bad)", "strokeWidth": 2},
            "encoding": {"y": size},
        },
        {
            "data": {"values": [line]},
            "mark": {**label, "align": "left", "dy": -4, "color": "var(--bad)"},
            "encoding": {"x": {"value": 4}, "y": size, "text": {"field": "said"}},
        },
        {
            "data": {"values": [above]},
            "mark": {**label, "align": "right", "color": "var(--soft)"},
            "encoding": {"x": {"value": WIDTH}, "y": {"value": -6}, "text": {"field": "said"}},
        },
    ]


def _crosses(report: Report, broken: list[_Row]) -> _Row:
    return {
        "data": {"values": broken},
        "mark": {"type": "point", "shape": "cross", "angle": 45, "size": 90, "filled": True},
        "encoding": _encoding(report, y="size"),
    }


def _errors(report: Report, section: Section) -> Chart:
    values: list[_Row] = [
        {
            "layer": layer.index,
            "run": _name(run),
            "size": error,
            "said": f"{section} layer {layer.index}, {_name(run)}: {percent(error)}",
        }
        for run in _approximate(report)
        for layer in run.layers
        if layer.section is section and (error := relative_error(layer))
    ]
    spec = _lines(report, values, section=section, title="relative error (log scale)", axis=".0e")
    worst = max(values, key=lambda value: value["size"])
    summary = f"Error against the float32 run with the same attention; largest: {worst['said']}."
    return _chart(f"Error after each {section} layer", summary, spec)


def _headroom(rows: list[Headroom]) -> Chart:
    values = [
        {
            "layer": row.layer,
            "mechanism": _mechanism(row),
            "bits": row.headroom_bits[Dtype.FLOAT16],
            "number": bits(row.headroom_bits[Dtype.FLOAT16]),
            "said": f"{shown(row.module)}, {_mechanism(row)}: {magnitude(row.abs_max)}, "
            f"{bits(row.headroom_bits[Dtype.FLOAT16])} bits of headroom",
        }
        for row in sorted(rows, key=lambda row: -row.headroom_bits[Dtype.FLOAT16])
    ]
    num_layers = len({row.layer for row in rows})
    names = {str(value["mechanism"]) for value in values}
    spec = {
        "height": _ROW * len(names),
        "data": {"values": values},
        "layer": _cells(has_numbers=num_layers <= _MOST_NUMBERS),
    }
    summary = f"Tightest: {values[-1]['said']}."
    return _chart("Headroom in float16, by mechanism", summary, spec)


def _cells(*, has_numbers: bool) -> list[_Row]:
    """A coloured cell for each layer and mechanism, with its number where there is room."""
    axes = {
        "x": {"field": "layer", "type": "ordinal", "title": "layer", "axis": {"labelAngle": 0}},
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
        "mark": {"type": "text", "color": "var(--on-cell)", "fontSize": 11},
        "encoding": {**axes, "text": {"field": "number"}},
    }
    return [cell, number] if has_numbers else [cell]


def _mechanism(row: Headroom) -> str:
    only = "" if row.attn_implementation is None else f" ({shown(row.attn_implementation)})"
    part = "" if row.section == "decoder" else f"{row.section}: "
    return _cut(f"{part}{row.mechanism.replace('_', ' ')}{only}")


def _approximate(report: Report) -> list[Run]:
    return [run for run in report.runs if not run.dtype.is_reference]


def _lines(
    report: Report,
    values: list[dict[str, Any]],
    *,
    section: Section,
    title: str,
    axis: str = "~s",
) -> dict[str, Any]:
    """A line for each run over the layers of a section, on a logarithmic scale."""
    encoding = _encoding(report, y="size")
    encoding["x"] |= {"title": f"{section} layer", "axis": {"tickMinStep": 1, "format": "d"}}
    encoding["y"] |= {"title": title, "axis": {"format": axis, "tickCount": 6}}
    line = {key: channel for key, channel in encoding.items() if key != "description"}
    return {
        "height": _HEIGHT,
        "layer": [
            {"data": {"values": values}, "mark": {"type": "line", "aria": False}, "encoding": line},
            {
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "size": 30, "opacity": 0.9},
                "encoding": encoding,
            },
        ],
    }


def _encoding(report: Report, *, y: str) -> dict[str, Any]:
    names = list(dict.fromkeys(_name(run) for run in report.runs))
    first = {_name(run): run for run in reversed(report.runs)}
    variants = list(dict.fromkeys(_variant(run) for run in report.runs))
    dashes = [_DASHES[variants.index(_variant(first[name])) % len(_DASHES)] for name in names]
    return {
        "x": {"field": "layer", "type": "quantitative", "scale": {"nice": False}},
        "y": {"field": y, "type": "quantitative", "scale": {"type": "log", "nice": False}},
        "color": {
            "field": "run",
            "type": "nominal",
            "title": None,
            "scale": {"domain": names, "range": [_colour(first[name]) for name in names]},
        },
        "strokeDash": {
            "field": "run",
            "type": "nominal",
            "title": None,
            "scale": {"domain": names, "range": dashes},
        },
        "description": {"field": "said"},
    }


def _variant(run: Run) -> Configuration:
    """What tells a run from the others of its dtype: one colour, and dashes of its own."""
    return replace(run.configuration, dtype=Dtype.FLOAT32)


def _name(run: Run) -> str:
    """Cut here: Vega would cut between the halves of a surrogate pair, and fail."""
    return _cut(shown(run.name))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}\N{HORIZONTAL ELLIPSIS}"


def _colour(run: Run) -> str:
    return "var(--sums)" if run.accumulation is Accumulation.FLOAT16 else f"var(--{run.dtype})"


def _chart(title: str, summary: str, spec: dict[str, Any]) -> Chart:
    return Chart(title=title, summary=summary, svg=drawn(spec, title=title))
