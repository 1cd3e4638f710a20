"""Markdown as GitHub reads it, with everything from outside escaped as text."""

from __future__ import annotations

import html
import re
from textwrap import wrap
from typing import TYPE_CHECKING

from precheck.render.parts.columns import filled
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precheck.render.parts.columns import Column

_PUNCTUATION = re.compile(r"([\\`*_{}\[\]<>|~#$!&])")
_LONGEST_CELL = 300


def prose(text: str, *, longest: int = 2000) -> str:
    r"""Text that shows as it is: no markup, no HTML, no link, no mention of a person, on one line.

    >>> prose("<script> *a* @someone\n")
    '\\<script\\> \\*a\\* @<!-- -->someone\\\\n'
    """
    escaped = _PUNCTUATION.sub(r"\\\1", shown(_cut(text, longest)))
    return _unlinked(escaped)


def code(text: str, *, longest: int = _LONGEST_CELL) -> str:
    r"""A code span; its fence is longer than any run of backticks inside.

    >>> code("a`b"), code("")
    ('``a`b``', '')
    """
    if not text:
        return ""
    inside = shown(_cut(text, longest))
    fence = "`" * (max((len(run) for run in re.findall(r"`+", inside)), default=0) + 1)
    gap = " " if inside.startswith("`") or inside.endswith("`") else ""
    return f"{fence}{gap}{inside}{gap}{fence}"


def block(lines: str, *, language: str = "") -> str:
    """A fenced block; line breaks stay, everything else that acts on a terminal is escaped."""
    inside = "\n".join(shown(line) for line in lines.split("\n"))
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", inside)), default=0) + 1)
    return f"{fence}{language}\n{inside}\n{fence}"


def table(columns: Sequence[Column], *, step: int = 1) -> str:
    """A table of these columns; with ``step`` 3 every third row."""
    kept = filled(columns)
    headers = [column.header.replace("\n", " ").strip() for column in kept]
    marks = ["---:" if column.justify == "right" else "---" for column in kept]
    rows = zip(*(column.cells[::step] for column in kept), strict=True)
    body = ([_cell(cell.plain) for cell in row] for row in rows)
    return "\n".join(map(_row, (map(_cell, headers), marks, *body)))


def details(summary: str, body: str) -> str:
    """Folded until a reader opens it."""
    # backslashes mean nothing inside a block of HTML
    title = _unlinked(html.escape(shown(_cut(summary, _LONGEST_CELL))))
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


_LINKED = re.compile(
    r"\w+(?=://)|www(?=\.)|(?:mailto|xmpp)(?=:)|(?:gh|cve)(?=-\d)|ghsa(?=-)|@|#(?=\d)",
    re.IGNORECASE,
)
_COMMIT = re.compile(r"\b(?=[a-f]*\d)(?=\d*[a-f])[\da-f]{7,40}\b", re.IGNORECASE)
_APART = "<!-- -->"


def _unlinked(text: str) -> str:
    """GitHub links addresses, issues, advisories and commits, and notifies people named after an @.

    A comment inside prevents it; a backslash does not, once the text has been rendered.

    **Source**: https://github.github.com/gfm/#autolinks-extension-
    """
    text = _LINKED.sub(rf"\g<0>{_APART}", text)
    return _COMMIT.sub(lambda commit: _APART.join(wrap(commit[0], 6)), text)


def _cell(text: str) -> str:
    return prose(text.strip(), longest=_LONGEST_CELL)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
