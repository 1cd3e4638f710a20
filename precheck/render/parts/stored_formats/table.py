"""A row for each format: what it costs in accuracy, and what it takes in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.facts.deployed_formats import spelling
from precheck.facts.engines import EngineName
from precheck.records.finding import Verdict
from precheck.records.quantities import nats, num_bytes
from precheck.render.parts.columns import Column, table
from precheck.render.parts.run_table import agreement, answer_error, divergence
from precheck.render.parts.stored_formats.groups import Group, groups, label
from precheck.render.parts.stored_formats.sizes import (
    cache_bytes,
    num_cache_tokens,
    weights_bytes,
)
from precheck.render.parts.words import DASH, shown, verdict_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

    from precheck.records.report import Report, Run

_THOUSAND = 1024


def format_tables(report: Report, *, width: int) -> Iterator[tuple[str, Table]]:
    """A title and a table for each configuration that was measured in formats."""
    for title, columns in format_columns(report):
        yield title, table(columns, width=width)


def format_columns(report: Report) -> Iterator[tuple[str, tuple[Column, ...]]]:
    """The same as columns; the run without a format is the first row."""
    for group in groups(report):
        yield f"Formats in {shown(str(group.configuration))}", _columns(report, group)


def sizes_note(report: Report) -> str:
    """What the sizes of the table are."""
    return (
        "weights: those of layers in the format, the rest in the dtype; "
        f"cache: {num_cache_tokens(report):,} tokens of one sequence; both with scales, estimated"
    )


def _columns(report: Report, group: Group) -> tuple[Column, ...]:
    def column(header: str, cell: Callable[[Run], str], *, rank: int = 0) -> Column:
        return Column(header=header, cells=[Text(cell(run)) for run in group.all], rank=rank)

    def words(header: str, cell: Callable[[Run], str], *, rank: int = 0) -> Column:
        cells = [Text(shown(cell(run))) for run in group.all]
        return Column(header=header, cells=cells, rank=rank, justify="left")

    return (
        words("format", label),
        Column(
            header="verdict",
            cells=[verdict_text(run.verdict) for run in group.all],
            justify="left",
        ),
        column("KL", divergence, rank=1),
        column("top-1", agreement, rank=4),
        column("answer error", answer_error, rank=1),
        column("weights", lambda run: _size(weights_bytes(report, run)), rank=3),
        column(
            f"cache {_short(num_cache_tokens(report))}",
            lambda run: _size(cache_bytes(report, run)),
            rank=2,
        ),
        column("worst token", _worst, rank=5),
        words("engines", _engines, rank=6),
    )


def _worst(run: Run) -> str:
    """KL of the token that loses most."""
    figure = None if run.logits is None else run.logits.kl_divergence_max
    is_told = not run.dtype.is_reference and run.verdict is not Verdict.OVERFLOW
    return nats(figure) if figure is not None and is_told else DASH


def _size(value: float | None) -> str:
    return DASH if value is None else num_bytes(value)


def _short(num_tokens: int) -> str:
    """A number of tokens in a heading.

    >>> _short(32768), _short(1000)
    ('32k', '1,000')
    """
    whole, rest = divmod(num_tokens, _THOUSAND)
    return f"{num_tokens:,}" if rest else f"{whole}k"


def _engines(run: Run) -> str:
    """Those that have all formats of a run."""
    formats = run.configuration.formats
    having = (
        engine.label
        for engine in EngineName
        if formats and all(spelling(name, engine=engine).exists for name in formats)
    )
    return ", ".join(having)
