"""How a terminal shows what came from a model, and what verdicts and severities look like."""

from __future__ import annotations

from typing import NamedTuple

from rich.text import Text

from precheck.records.finding import Severity, Verdict

DASH = "\N{EN DASH}"
"""Where there is nothing to show."""


class Mark(NamedTuple):
    """A symbol and a colour; always shown beside the word, so neither is needed to understand."""

    symbol: str
    style: str


VERDICT_MARKS = {
    Verdict.FAILED: Mark("✗", "red"),
    Verdict.INCOMPLETE: Mark("?", "yellow"),
    Verdict.OVERFLOW: Mark("✗", "red"),
    Verdict.DEGRADED: Mark("▼", "red"),
    Verdict.ABSORBED: Mark("○", "yellow"),
    Verdict.LOW_HEADROOM: Mark("!", "yellow"),
    Verdict.SAFE: Mark("✓", "green"),
}
SEVERITY_MARKS = {
    Severity.ERROR: Mark("✗", "red"),
    Severity.WARNING: Mark("!", "yellow"),
    Severity.NOTE: Mark("·", "cyan"),
}


def verdict_text(verdict: Verdict) -> Text:
    """Symbol and word of a verdict."""
    mark = VERDICT_MARKS[verdict]
    return Text(f"{mark.symbol} {verdict.replace('_', ' ')}", style=mark.style)


def shown(text: str) -> str:
    r"""Text from outside with everything a terminal would act on written out.

    Escape sequences, line breaks, marks that reorder the line and lone surrogates become visible.

    >>> shown("\x1b[31mred\x1b[0m\n")
    '\\x1b[31mred\\x1b[0m\\n'
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
