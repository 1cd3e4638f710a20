"""Tables that stand alone, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType


def printed(*renderables: RenderableType, width: int, colour: bool) -> str:
    """One below the other, without trailing blanks; it depends on the arguments alone."""
    console = Console(
        width=width,
        force_terminal=colour,
        no_color=not colour,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
        _environ={},
    )
    with console.capture() as capture:
        for each in renderables:
            console.print(each)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().split("\n"))
