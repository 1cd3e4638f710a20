"""Lines that are wider than the terminal without a reason."""

from __future__ import annotations

from rich.cells import cell_len

_COPIED = ("    ", "next: ")
"""What begins a line of code, or a command: wrapped by the terminal alone, as one line."""


def too_wide(text: str, *, width: int) -> list[str]:
    """The lines that are wider, but for one long word and for what is there to be copied."""
    return [
        line
        for line in text.split("\n")
        if cell_len(line) > width and len(line.split()) > 1 and not line.startswith(_COPIED)
    ]
