"""What a run measured at each distance from the first token of its longest text."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

FIRST_TOKENS = 64
"""Positions before this are one bucket: what grows with the distance does not show there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionFigures:
    """Figures of a run over the positions ``start`` to ``end``, of the reference where it says so.

    All are None, or lacking, where the run had broken before, or where nothing can be compared.
    """

    start: int
    """The first position, counted from 0."""
    end: int
    """The one after the last."""
    kl_divergence: float | None = None
    """Mean over tokens of KL(reference || run), nats; in a mixture of experts, of those that went
    to the reference's experts."""
    top1_agreement: float | None = None
    """Share of tokens whose first choice is the reference's."""
    abs_max: dict[str, float] = field(default_factory=dict)
    """By mechanism, the largest reference value that an operation in 16 bits has to hold here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LongText:
    """The text whose figures are told by position."""

    probe: str
    num_tokens: int
    part_tokens: int | None = None
    """Tokens of each forward, where it was run in parts with the model's own cache."""


def bucket_edges(num_tokens: int) -> tuple[int, ...]:
    """Where buckets of positions begin, and the end of the last: two for each doubling.

    >>> bucket_edges(300)
    (0, 64, 96, 128, 192, 256, 300)
    >>> bucket_edges(50)
    (0, 50)
    """
    edges = [0]
    edge = FIRST_TOKENS
    while edge < num_tokens:
        edges += [each for each in (edge, edge * 3 // 2) if each < num_tokens]
        edge *= 2
    return (*edges, num_tokens)


def columns_by_bucket(text_tokens: int, *, first: int, count: int) -> list[tuple[int, slice]]:
    """The buckets that part of a text is in, by number, each with its columns in that part.

    >>> columns_by_bucket(300, first=60, count=30)
    [(0, slice(0, 4, None)), (1, slice(4, 30, None))]

    Args:
        text_tokens: of the whole text.
        first: the position of the part's first token.
        count: tokens of the part.
    """
    parts = []
    for bucket, (start, end) in enumerate(pairwise(bucket_edges(text_tokens))):
        low, high = max(start - first, 0), min(end - first, count)
        if low < high:
            parts.append((bucket, slice(low, high)))
    return parts
