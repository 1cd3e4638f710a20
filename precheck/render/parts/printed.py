"""Tables that stand alone, as text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import RenderableType


def printed(*renderables: RenderableType, width: int, colour: bool) -> str:
    """Renderables one below the other, without trailing blanks.

    Args:
        renderables: what to show.
        width: columns of the terminal.
        colour: with ANSI colours.
    """
    # not captured: a console that writes to stdout touches it even then, and it may be full
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        no_color=not colour,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
        # The text depends on the arguments alone, not on FORCE_COLOR or COLUMNS.
        _environ={},
    )
    for renderable in renderables:
        # the console forgets what a text says of itself
        is_whole = isinstance(renderable, Text) and renderable.no_wrap
        console.print(renderable, crop=False, soft_wrap=bool(is_whole))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))
