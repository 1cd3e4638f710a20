"""Two reports compared, for a terminal."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from precheck.render.parts.printed import printed
from precheck.render.parts.words import SEVERITY_MARKS, shown
from precheck.render.parts.wrapping import labelled, shares, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from precheck.records.finding import Finding
    from precheck.records.outcomes.difference import Change, Difference

_GAP = 2
"""Blank columns behind each column."""


def render_difference(
    differing: Difference, *, names: tuple[str, str], width: int, colour: bool
) -> str:
    """The most likely reason first, then everything that differs.

    Args:
        differing: what differs.
        names: what the two reports are called.
        width: columns of the terminal.
        colour: with ANSI colours.
    """
    lines = _lines(differing, names=names, width=width)
    return printed(*lines, width=width, colour=colour)


def _lines(
    differing: Difference, *, names: tuple[str, str], width: int
) -> Iterator[RenderableType]:
    if differing.is_empty:
        yield Text("✓ no difference in verdicts, figures and findings", style="bold green")
    else:
        yield Text("✗ the reports differ", style="bold red")
        for explanation in differing.explanations:
            yield wrapped(Text(f"→ {shown(explanation)}"))
    groups = (
        ("Runs", differing.runs),
        ("First layer that differs", differing.layers),
        ("Largest values", differing.values),
        ("Advice", differing.advice),
        ("Model and inputs", differing.model),
        ("Environment", differing.environment),
    )
    for title, changes in groups:
        if changes:
            yield Text()
            yield from _changes(title, changes, names=names, width=width)
    for title, findings in (("Gone", differing.gone), ("New", differing.new)):
        if findings:
            yield Text()
            yield Text(f"{title} findings", style="bold")
            yield from chain.from_iterable(map(_finding, findings))


def _changes(
    title: str, changes: tuple[Change, ...], *, names: tuple[str, str], width: int
) -> Iterator[RenderableType]:
    """A table; where no words fit beside each other, both values below what differs."""
    head = (Text(title, style="bold"), *(Text(shown(name), style="dim") for name in names))
    rows = [
        [Text(shown(part)) for part in (change.what, change.first, change.second)]
        for change in changes
    ]
    widths = shares(list(zip(head, *rows, strict=True)), room=width - _GAP * len(head))
    if widths is not None:
        yield _table(head, rows, widths=widths)
        return
    yield head[0]
    for what, *values in rows:
        yield wrapped(what, indent=_GAP)
        yield from labelled(
            (Text.assemble("    ", name), value)
            for name, value in zip(head[1:], values, strict=True)
        )


def _table(head: Sequence[Text], rows: Sequence[Sequence[Text]], *, widths: list[int]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), show_edge=False)
    for name, width in zip(head, widths, strict=True):
        grid.add_column(name, width=width)
    for row in rows:
        grid.add_row(*row)
    return grid


def _finding(finding: Finding) -> Iterator[RenderableType]:
    mark = SEVERITY_MARKS[finding.severity]
    label = Text(f"{mark.symbol} {shown(finding.code)} {finding.severity}", style=mark.style)
    yield from labelled([(label, Text(shown(finding.message)))])
