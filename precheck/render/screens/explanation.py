"""Findings explained, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.render.parts.columns import Column, table
from precheck.render.parts.printed import printed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.facts.findings import Explanation

_WIDEST_PROSE = 100


def render_explanation(explained: Explanation, *, width: int, colour: bool) -> str:
    """The whole section; links are shown in full."""
    from rich.markdown import Markdown  # noqa: PLC0415  slow to import, and nothing else needs it

    title = Text(f"{explained.code}: {explained.title}", style="bold")
    body = Markdown(explained.text, hyperlinks=False)
    return printed(title, body, width=min(width, _WIDEST_PROSE), colour=colour)


def render_codes(explained: Iterable[Explanation], *, width: int, colour: bool) -> str:
    """A line for each code."""
    listed = list(explained)
    columns = (
        Column(header="code", cells=[Text(row.code) for row in listed], justify="left"),
        Column(header="meaning", cells=[Text(row.title) for row in listed], justify="left"),
    )
    hint = Text("details: precheck explain CODE", style="dim")
    return printed(table(columns, width=width), Text(), hint, width=width, colour=colour)
