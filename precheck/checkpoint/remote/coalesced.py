"""Many spans of a file as few requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.shards import Span

if TYPE_CHECKING:
    from collections.abc import Iterable

GAP_BYTES = 32 << 10
"""Bytes between two spans that are read too, where that saves a request: at 5 MB/s they take 7
milliseconds, and a request takes several times that."""


def coalesced(
    spans: Iterable[Span], *, gap: int = GAP_BYTES, at_most: int | None = None
) -> tuple[Span, ...]:
    """Spans that cover those given, in order, at least ``gap`` bytes apart.

    Args:
        spans: in any order.
        gap: fewer bytes between two are read too.
        at_most: as many spans; if there are more, the gap is doubled. None: any number.

    >>> coalesced([Span(90, 99), Span(0, 8), Span(10, 12)], gap=4)
    (Span(start=0, end=12), Span(start=90, end=99))
    """
    in_order = sorted(spans)
    found = _joined(in_order, gap)
    while at_most is not None and len(found) > at_most:
        gap *= 2
        found = _joined(in_order, gap)
    return found


def _joined(in_order: Iterable[Span], gap: int) -> tuple[Span, ...]:
    found: list[Span] = []
    for span in in_order:
        if span.start == span.end:
            continue
        if found and span.start - found[-1].end < gap:
            found[-1] = Span(found[-1].start, max(found[-1].end, span.end))
        else:
            found.append(span)
    return tuple(found)
