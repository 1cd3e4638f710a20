"""Two reports compared, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from precheck.render.parts.printed import printed
from precheck.render.parts.words import SEVERITY_MARKS, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.finding import Finding
    from precheck.records.outcomes.difference import Change, Difference


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
    return printed(*_lines(differing, names=names), width=width, colour=colour)


def _lines(differing: Difference, *, names: tuple[str, str]) -> Iterator[RenderableType]:
    if differing.is_empty:
        yield Text("✓ no difference in verdicts, figures and findings", style="bold green")
    else:
        yield Text("✗ the reports differ", style="bold red")
        for explanation in differing.explanations:
            yield Text(f"→ {shown(explanation)}")
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
            yield _changes(title, changes, names=names)
    for title, findings in (("Gone", differing.gone), ("New", differing.new)):
        if findings:
            yield Text()
            yield Text(f"{title} findings", style="bold")
            yield from map(_finding, findings)


def _changes(title: str, changes: tuple[Change, ...], *, names: tuple[str, str]) -> Table:
    grid = Table(
        box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_edge=False
    )
    grid.add_column(Text(title, style="bold"), ratio=3, overflow="fold")
    for name in names:
        grid.add_column(Text(shown(name)), ratio=4, overflow="fold")
    for change in changes:
        grid.add_row(*(Text(shown(part)) for part in (change.what, change.first, change.second)))
    return grid


def _finding(finding: Finding) -> Table:
    mark = SEVERITY_MARKS[finding.severity]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    label = Text(f"{mark.symbol} {shown(finding.code)} {finding.severity}", style=mark.style)
    grid.add_row(label, Text(shown(finding.message)))
    return grid
