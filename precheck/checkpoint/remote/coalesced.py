"""Many spans of a file as few requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.shards import Span

if TYPE_CHECKING:
    from collections.abc import Iterable

GAP_BYTES = 32 << 10
"""Bytes between two spans that are read too, where that saves a request: at 5 MB/s they take 7
milliseconds, and a request takes several times that."""


def coalesced(spans: Iterable[Span], *, gap: int = GAP_BYTES) -> tuple[Span, ...]:
    """Spans that cover those given, in order, at least ``gap`` bytes apart.

    >>> coalesced([Span(90, 99), Span(0, 8), Span(10, 12)], gap=4)
    (Span(start=0, end=12), Span(start=90, end=99))
    """
    found: list[Span] = []
    for span in sorted(spans):
        if span.start == span.end:
            continue
        if found and span.start - found[-1].end < gap:
            found[-1] = Span(found[-1].start, max(found[-1].end, span.end))
        else:
            found.append(span)
    return tuple(found)
