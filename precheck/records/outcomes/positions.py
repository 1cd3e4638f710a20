"""What a run measured at each distance from the first token of its longest text."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

FIRST_TOKENS = 64
"""Positions before this are one bucket: what grows with the distance does not show there."""


class PositionKind(StrEnum):
    """What of a position an operation computes with."""

    NUMBER = "number"
    """The position itself."""
    ANGLE = "angle"
    """A position times a frequency, in radians, whose sine or cosine is taken."""
    BIAS = "bias"
    """What is added to attention scores for a distance, as ALiBi does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PositionRounding:
    """An operation that reads what tells positions apart in 16 bits."""

    kind: PositionKind
    module: str
    """The first that it runs in."""
    op: str
    source: str
    """Base name of the file and line."""
    source_file: str | None = None
    abs_max: float
    """The largest operand."""
    step: float
    """How far apart neighbouring numbers of the dtype are there."""


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


def by_octave(figures: tuple[PositionFigures, ...]) -> tuple[PositionFigures, ...]:
    """The same figures for each doubling of the distance: two buckets together.

    >>> rows = [PositionFigures(start=start, end=end) for start, end in pairwise(bucket_edges(300))]
    >>> [(row.start, row.end) for row in by_octave(tuple(rows))]
    [(0, 64), (64, 128), (128, 256), (256, 300)]
    """
    octaves = list(figures[:1])
    for row in figures[1:]:
        is_half = row.start % 3 == 0 and octaves[-1].end == row.start and len(octaves) > 1
        if is_half:
            octaves[-1] = _together(octaves[-1], row)
        else:
            octaves.append(row)
    return tuple(octaves)


def _together(first: PositionFigures, second: PositionFigures) -> PositionFigures:
    return PositionFigures(
        start=first.start,
        end=second.end,
        kl_divergence=_mean(first, second, first.kl_divergence, second.kl_divergence),
        top1_agreement=_mean(first, second, first.top1_agreement, second.top1_agreement),
        abs_max={
            name: max(first.abs_max.get(name, 0.0), second.abs_max.get(name, 0.0))
            for name in first.abs_max | second.abs_max
        },
    )


def _mean(
    first: PositionFigures, second: PositionFigures, one: float | None, other: float | None
) -> float | None:
    """Of the tokens of both, by their numbers; of one where the other is not known."""
    if one is None or other is None:
        return other if one is None else one
    early, late = first.end - first.start, second.end - second.start
    return (early * one + late * other) / (early + late)


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
