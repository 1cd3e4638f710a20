"""A line for each run over the layers of a part of the model, on a logarithmic scale."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.records.precision import Accumulation, Dtype
from precheck.render.parts.charts.chart import Row, cut, thinned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.configuration import Configuration
    from precheck.records.report import Run
    from precheck.records.traces import Section

_HEIGHT = 280
_DASHES = ([1, 0], [6, 4], [2, 2], [8, 3, 2, 3])
_FEW_TICKS = 3
_OF_FORMATS = ("bad", "float16", "good", "sums", "warn", "note", "float32")


def name(run: Run) -> str:
    """What a run is called in a chart."""
    return cut(run.name)


def layers_of(runs: Sequence[Run], section: Section) -> list[int]:
    """The layers of a part of the model that any of the runs came to."""
    indices = {layer.index for run in runs for layer in run.layers if layer.section is section}
    return sorted(indices)


def line_spec(
    runs: Sequence[Run],
    values: list[Row],
    *,
    section: Section,
    title: str,
    form: str,
    top: float,
) -> Row:
    """The lines and points of values, each with ``layer``, ``run``, ``size`` and ``said``.

    Args:
        runs: those that have a line.
        values: where the lines go.
        section: what the layers are of.
        title: of the vertical axis.
        form: how it writes its numbers, in the language of d3.
        top: what else the vertical axis has to reach.
    """
    channels = encoding(runs)
    widths = {name(run): _width(run) for run in runs}
    values = sorted(values, key=lambda value: widths[value["run"]], reverse=True)
    layers = layers_of(runs, section)
    channels["x"]["scale"]["domain"] = [layers[0], layers[-1]]
    channels["x"] |= {
        "title": f"{section} layer",
        "axis": {"values": thinned(layers), "format": "d", "labelFlush": False},
    }
    low, high = domain([value["size"] for value in values], top=top)
    channels["y"]["scale"]["domain"] = [low, high]
    channels["y"] |= {"title": title, "axis": {"format": form, "values": ticks(low, high)}}
    line = {key: channel for key, channel in channels.items() if key != "description"}
    return {
        "height": _HEIGHT,
        "layer": [
            {"data": {"values": values}, "mark": {"type": "line", "aria": False}, "encoding": line},
            {
                "data": {"values": values},
                "mark": {"type": "point", "filled": True, "size": 30, "opacity": 1},
                "encoding": {key: each for key, each in channels.items() if key != "strokeWidth"},
            },
        ],
    }


def encoding(runs: Sequence[Run]) -> Row:
    """How a value becomes a place, a colour, a width and dashes."""
    first = {name(run): run for run in sorted(runs, key=_width, reverse=True)}
    variants = list(dict.fromkeys(_variant(run) for run in runs))
    looks = {
        "color": [_colour(run, variants) for run in first.values()],
        "strokeDash": [
            _DASHES[variants.index(_variant(run)) % len(_DASHES)] for run in first.values()
        ],
        "strokeWidth": [_width(run) for run in first.values()],
    }
    by_run = {"field": "run", "type": "nominal", "title": None}
    return {
        "x": {"field": "layer", "type": "quantitative", "scale": {"nice": False}},
        "y": {"field": "size", "type": "quantitative", "scale": {"type": "log", "nice": False}},
        "description": {"field": "said"},
        **{
            channel: {
                **by_run,
                "scale": {"type": "ordinal", "domain": list(first), "range": values},
            }
            for channel, values in looks.items()
        },
    }


def _width(run: Run) -> int:
    """The wider ones are drawn first, so that lines of equal values are all seen."""
    if run.dtype.is_reference:
        return 7
    return 4 if run.dtype is Dtype.FLOAT16 else 2


def _variant(run: Run) -> Configuration:
    """What tells a run from the others of its dtype: one colour, and dashes of its own."""
    return replace(run.configuration, dtype=Dtype.FLOAT32)


def _colour(run: Run, variants: list[Configuration]) -> str:
    """Of the dtype; runs with a format are all of one dtype, so each has a colour of its own."""
    if run.configuration.has_format:
        formats = [variant for variant in variants if variant.has_format]
        return f"var(--{_OF_FORMATS[formats.index(_variant(run)) % len(_OF_FORMATS)]})"
    return "var(--sums)" if run.accumulation is Accumulation.FLOAT16 else f"var(--{run.dtype})"


def domain(sizes: list[float], *, top: float) -> tuple[float, float]:
    """From below the smallest to above the largest, with room for a label."""
    low = max(min(sizes, default=1.0) / 1.5, sys.float_info.min)
    return low, max(low, min(max([*sizes, top]) * 3, sys.float_info.max))


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with steps between them where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [ten for power in powers if low <= (ten := float(f"1e{power}")) <= high]
    if len(tens) >= _FEW_TICKS:
        return thinned(tens)
    steps = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    return [step for step in steps if low <= step <= high] or [low, high]
