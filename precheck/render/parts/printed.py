"""Tables that stand alone, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType


def printed(*renderables: RenderableType, width: int, colour: bool) -> str:
    """Renderables one below the other, without trailing blanks.

    Args:
        renderables: what to show.
        width: columns of the terminal.
        colour: with ANSI colours.
    """
    console = Console(
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
    with console.capture() as capture:
        for renderable in renderables:
            console.print(renderable)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().split("\n"))
