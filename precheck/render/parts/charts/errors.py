"""How far every run is from float32 after each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.loss import loss, relative_error
from precheck.records.quantities import percent
from precheck.render.parts.charts.chart import Chart, Row, chart
from precheck.render.parts.charts.lines import line_spec, name
from precheck.render.parts.stored_formats.groups import groups, plain_runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.report import Report, Run
    from precheck.records.traces import Section

_MOST_FORMATS = 7
"""Lines that can be told apart by colour, besides that of no format."""


def errors(report: Report, section: Section) -> Chart | None:
    """The chart of a part of the model; None where nothing is off."""
    title = f"Error after each {section} layer"
    return _chart(plain_runs(report), section, title=title, summary="")


def format_errors(report: Report, section: Section) -> Chart | None:
    """The same for runs with a format, those that lose most; None without one."""
    for plain, runs in ((group.plain, group.runs) for group in groups(report)):
        costly = sorted(runs, key=lambda run: -(loss(run).kl_divergence or 0.0))[:_MOST_FORMATS]
        shown = [run for run in (plain, *runs) if run is plain or run in costly]
        left_out = len(runs) - len(costly)
        summary = f"{left_out} formats that lose less are left out. " if left_out else ""
        return _chart(
            [run for run in shown if run is not None],
            section,
            title=f"Error after each {section} layer, by format",
            summary=summary,
        )
    return None


def _chart(measured: Sequence[Run], section: Section, *, title: str, summary: str) -> Chart | None:
    runs = [run for run in measured if not run.dtype.is_reference or run.configuration.has_format]
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
    said = f"Error against the float32 run with the same attention; largest: {worst['said']}."
    return chart(title, summary=f"{summary}{said}", spec=spec)
