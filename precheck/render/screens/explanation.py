"""Findings explained, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text

from precheck.render.parts.columns import Column, table
from precheck.render.parts.printed import printed
from precheck.render.parts.wrapping import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, ConsoleOptions, RenderResult

    from precheck.facts.findings import Explanation

_WIDEST_PROSE = 100


def render_explanation(explained: Explanation, *, width: int, colour: bool) -> str:
    """The whole section; links are shown in full, and never broken."""
    from rich.markdown import Markdown, Paragraph  # noqa: PLC0415  slow, and only needed here

    class _Whole(Paragraph):
        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            yield wrapped(self.text)

    class _Section(Markdown):
        elements: ClassVar = {**Markdown.elements, "paragraph_open": _Whole}

    title = Text(f"{explained.code}: {explained.title}", style="bold")
    body = _Section(explained.text, hyperlinks=False)
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
