"""The charts of a report: range, error and headroom over the layers, and by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.render.parts.charts.errors import errors, format_errors
from precheck.render.parts.charts.headroom import headroom
from precheck.render.parts.charts.intervals import intervals
from precheck.render.parts.charts.positions import position_charts
from precheck.render.parts.charts.sizes import sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report
    from precheck.render.parts.charts.chart import Chart

__all__ = ["charts"]


def charts(report: Report) -> Iterator[Chart]:
    """The charts that the report has figures for; none of a part with a single layer."""
    places = {(layer.section, layer.index) for run in report.runs for layer in run.layers}
    sections = dict.fromkeys(layer.section for run in report.runs for layer in run.layers)
    for section in sections:
        if sum(place[0] is section for place in places) < 2:  # noqa: PLR2004  no line
            continue
        for draw in (sizes, errors, format_errors, headroom, intervals):
            if (chart := draw(report, section)) is not None:
                yield chart
    yield from position_charts(report)
