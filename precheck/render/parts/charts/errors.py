"""How far every run is from float32 after each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.loss import relative_error
from precheck.records.quantities import percent
from precheck.render.parts.charts.chart import Chart, Row, chart
from precheck.render.parts.charts.lines import line_spec, name

if TYPE_CHECKING:
    from precheck.records.report import Report
    from precheck.records.traces import Section


def errors(report: Report, section: Section) -> Chart | None:
    """The chart of a part of the model; None where nothing is off."""
    runs = [run for run in report.runs if not run.dtype.is_reference]
    values: list[Row] = [
        {
            "layer": layer.index,
            "run": name(run),
            "size": error,
            "said": f"{section} layer {layer.index}, {name(run)}: {percent(error)}",
        }
        for run in runs
        for layer in run.layers
        if layer.section is section and (error := relative_error(layer))
    ]
    if not values:
        return None
    worst = max(values, key=lambda value: value["size"])
    spec = line_spec(
        runs,
        values,
        section=section,
        title="relative error (log scale)",
        form="~%",
        top=worst["size"],
    )
    summary = f"Error against the float32 run with the same attention; largest: {worst['said']}."
    return chart(f"Error after each {section} layer", summary=summary, spec=spec)
