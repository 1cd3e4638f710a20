"""How the figures of the runs change with the distance from the first token."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.positions import by_octave
from precheck.records.precision import Dtype, headroom_bits
from precheck.records.quantities import bits, nats
from precheck.render.parts.columns import Column, table
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.words import DASH, shown

if TYPE_CHECKING:
    from rich.table import Table

    from precheck.records.outcomes.positions import PositionFigures
    from precheck.records.report import Report, Run


class Tight(NamedTuple):
    """The mechanism with the least headroom."""

    left: float
    mechanism: Mechanism


def tight_at(row: PositionFigures, dtype: Dtype) -> Tight | None:
    """The least headroom at some positions, in bits; None where nothing was measured."""
    known = [
        Tight(left, Mechanism(name))
        for name, abs_max in row.abs_max.items()
        if (left := headroom_bits(abs_max, dtype)) is not None
    ]
    return min(known, default=None)


def runs_by_position(report: Report) -> list[Run]:
    """Those in 16 bits that have figures by position."""
    return [
        run for run in plain_runs(report) if run.positions and not run.configuration.is_reference
    ]


def positions_title(report: Report) -> str:
    """Over the table: which text it is about."""
    text = report.coverage.long_text
    if text is None:
        return ""
    parts = "" if text.part_tokens is None else f", in parts of {text.part_tokens:,}"
    return f"KL and headroom by position in {shown(text.probe)} ({text.num_tokens:,} tokens{parts})"


def position_table(report: Report, *, width: int) -> Table | None:
    """The table, as many columns as there is room for; None without a long text."""
    columns = position_columns(report)
    return table(columns, width=width) if columns else None


def position_columns(report: Report) -> list[Column]:
    """A row for each doubling of the distance, and a column or two for each run."""
    runs = runs_by_position(report)
    if not runs or report.coverage.long_text is None:
        return []
    octaves = [by_octave(run.positions) for run in runs]
    places = [Text(f"{row.start:,} to {row.end - 1:,}") for row in octaves[0]]
    columns = [Column(header="\ntokens", cells=places)]
    for number, (run, rows) in enumerate(zip(runs, octaves, strict=True)):
        name = f"{run.dtype} {shown(run.attn_implementation)}"
        columns.append(
            Column(header=f"{name}\nKL", cells=[_divergence(row) for row in rows], rank=2 * number)
        )
        if run.dtype is Dtype.FLOAT16:
            cells = [_left(row) for row in rows]
            header = f"{name}\nbits left"
            columns.append(Column(header=header, cells=cells, rank=2 * number + 1, justify="left"))
    return columns


def _divergence(row: PositionFigures) -> Text:
    return Text(DASH if row.kl_divergence is None else nats(row.kl_divergence))


def _left(row: PositionFigures) -> Text:
    tight = tight_at(row, Dtype.FLOAT16)
    if tight is None:
        return Text(DASH)
    return Text(f"{bits(tight.left)} ({tight.mechanism.replace('_', ' ')})")
