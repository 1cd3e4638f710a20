"""What was found and what no input exceeds, layer by layer, against the limit of float16."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.outcomes.intervals import intervals_of
from precheck.records.precision import Dtype
from precheck.records.quantities import magnitude
from precheck.render.parts.charts.chart import Chart, Row, chart, cut, thinned
from precheck.render.parts.charts.lines import domain, ticks
from precheck.render.parts.intervals import run_with_bounds

if TYPE_CHECKING:
    from precheck.records.report import Report
    from precheck.records.traces import Section

_HEIGHT = 280
_LIMIT = Dtype.FLOAT16.limits.max
FOUND, BOUND = "found", "no input exceeds"


def intervals(report: Report, section: Section) -> Chart | None:
    """The chart of a part of the model; None without bounds of a float16 run."""
    run = run_with_bounds(report)
    if run is None or run.dtype is not Dtype.FLOAT16:
        return None
    places = [
        (of_mechanism.mechanism, each)
        for of_mechanism in intervals_of(report.headroom, run.configuration)
        for each in of_mechanism.intervals
        if each.row.section is section and each.row.layer is not None
    ]
    values: list[Row] = []
    for mechanism, each in places:
        name = cut(mechanism.replace("_", " "))
        bound = each.row.bound_abs_max.get(Dtype.FLOAT16)
        for what, size in ((FOUND, each.row.abs_max), (BOUND, bound)):
            if size:
                said = f"{section} layer {each.row.layer}, {name}: {what} {magnitude(size)}"
                values.append(
                    {
                        "layer": each.row.layer,
                        "mechanism": name,
                        "what": what,
                        "size": size,
                        "said": f"{said}, {each.status}",
                    }
                )
    if not any(value["what"] == BOUND for value in values):
        return None
    proved = sum(each.status is ProofStatus.PROVED for _, each in places)
    unbounded = sum(each.row.bound_abs_max.get(Dtype.FLOAT16) is None for _, each in places)
    summary = (
        f"Solid: the largest value found; dashed: what no input exceeds. Where the dashed line is "
        f"below float16's maximum, {magnitude(_LIMIT)}, it is proved for every prompt: "
        f"{proved} of {len(places)} places in {run.name}."
        f"{f' {unbounded} have no bound.' if unbounded else ''}"
    )
    title = f"Found and proved in float16 in each {section} layer"
    return chart(title, summary=summary, spec=_spec(values, section))


def _spec(values: list[Row], section: Section) -> Row:
    layers = sorted({value["layer"] for value in values})
    low, high = domain([value["size"] for value in values], top=_LIMIT)
    dashes = {"domain": [FOUND, BOUND], "range": [[1, 0], [6, 4]]}
    line = {
        "x": {
            "field": "layer",
            "type": "quantitative",
            "title": f"{section} layer",
            "scale": {"nice": False, "domain": [layers[0], layers[-1]]},
            "axis": {"values": thinned(layers), "format": "d", "labelFlush": False},
        },
        "y": {
            "field": "size",
            "type": "quantitative",
            "title": "largest value (log scale)",
            "scale": {"type": "log", "nice": False, "domain": [low, high]},
            "axis": {"format": "~s", "values": ticks(low, high)},
        },
        "color": {"field": "mechanism", "type": "nominal", "title": None},
        "strokeDash": {"field": "what", "type": "nominal", "title": None, "scale": dashes},
    }
    limit = {"size": _LIMIT, "said": f"float16 maximum: {magnitude(_LIMIT)}"}
    size = {"field": "size", "type": "quantitative"}
    return {
        "height": _HEIGHT,
        "layer": [
            {
                "data": {"values": values},
                "mark": {"type": "line", "aria": False},
                "encoding": line,
            },
            {
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "size": 30, "opacity": 1},
                "encoding": {
                    **{name: line[name] for name in ("x", "y", "color")},
                    "description": {"field": "said"},
                },
            },
            {
                "data": {"values": [limit]},
                "mark": {"type": "rule", "color": "var(--bad)", "strokeWidth": 2},
                "encoding": {"y": size},
            },
            {
                "data": {"values": [limit]},
                "mark": {
                    "type": "text",
                    "baseline": "bottom",
                    "align": "left",
                    "dy": -4,
                    "color": "var(--bad)",
                },
                "encoding": {"x": {"value": 4}, "y": size, "text": {"field": "said"}},
            },
        ],
    }
