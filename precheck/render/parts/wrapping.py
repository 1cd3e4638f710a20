"""Texts in a terminal: wrapped between words, and never inside one.

An address or a path that is longer than a line stays whole. The terminal wraps it itself, so that
it can still be opened, and copied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.measure import Measurement
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_GAP = 2
"""Blank columns between a label and its text."""
_LEAST_ROOM = 16
"""Columns for a text, however narrow the terminal is."""
_WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A text behind its label; further lines stand below the first one's text."""

    text: Text
    label: Text
    indent: int
    """Columns before the text, those of the label included."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines."""
        room = max(_LEAST_ROOM, options.max_width - self.indent)
        label = self.label
        for line in _lines(self.text, width=room):
            gap = " " * (self.indent - label.cell_len)
            whole = Text.assemble(label, gap, line)
            whole.no_wrap, whole.overflow = True, "ignore"
            yield whole
            label = Text()

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As wide as the longest word, or as the whole text."""
        inside = Measurement.get(console, options, self.text)
        return Measurement(inside.minimum + self.indent, inside.maximum + self.indent)


@dataclass(frozen=True, slots=True)
class Within:
    """Something to print, wrapped at so many columns, whatever the terminal has."""

    renderable: RenderableType
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The same, and nothing cut off at the end of a line."""
        narrow = options.update(max_width=min(self.width, options.max_width))
        yield from console.render(self.renderable, narrow)


def wrapped(text: Text, *, indent: int = 0) -> Wrapped:
    """A text of any length, every line of it indented."""
    return Wrapped(text, Text(), indent)


def labelled(rows: Iterable[tuple[Text, Text]]) -> Iterator[Wrapped]:
    """Texts behind their labels, all texts beginning in the same column."""
    listed = list(rows)
    indent = max((label.cell_len for label, _ in listed), default=0) + _GAP
    for label, text in listed:
        yield Wrapped(text, label, indent)


def shares(columns: Sequence[Sequence[Text]], *, room: int) -> list[int] | None:
    """How wide each column of a table is, so that no word is broken; None where that is too wide.

    >>> shares([[Text("a few words")], [Text("one")]], room=12)
    [9, 3]
    """
    least = [max(map(_longest_word, column)) for column in columns]
    if sum(least) > room:
        return None
    widths = [min(room, max(cell.cell_len for cell in column)) for column in columns]
    while sum(widths) > room:
        wrapping = [place for place, width in enumerate(widths) if width > least[place]]
        widths[max(wrapping, key=widths.__getitem__)] -= 1
    return widths


def _longest_word(text: Text) -> int:
    return max(map(cell_len, text.plain.split()), default=0)


def command(line: str, *, style: str = "cyan") -> Text:
    """A line to copy: as it is, however long, because a line break would be copied too."""
    return Text(line, style=style, no_wrap=True, overflow="ignore")


def _lines(text: Text, *, width: int) -> Iterator[Text]:
    """The text in lines of this width, but for words that are longer."""
    for paragraph in text.split(allow_blank=True):
        starts, used = [], 0
        for word in _WORD.finditer(paragraph.plain):
            if used and used + cell_len(word[0].rstrip()) > width:
                starts.append(word.start())
                used = 0
            used += cell_len(word[0])
        for line in paragraph.divide(starts):
            line.rstrip()
            yield line
