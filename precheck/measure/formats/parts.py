"""What a format can be switched off for, one by one: keys or values of a layer, a matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.facts.formats import Scale
from precheck.measure.formats.numbers import edges

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from precheck.facts.formats import Numbers


@dataclass(slots=True, kw_only=True, eq=False)
class PartStats:
    """How large the numbers of one part are, and what storing them loses.

    By head and channel, ``(heads, channels)`` float64: of a cache those of its layer, elsewhere one
    head and the channels of the input.
    """

    largest: Tensor
    total: Tensor
    """Sum of the numbers."""
    squares: Tensor
    """Sum of their squares."""
    errors: Tensor
    """Sum of the squares of what rounding changed."""
    clipped: Tensor
    """How many are beyond the largest number of the format."""
    count: int
    """Numbers in each channel."""
    squares_by_position: Tensor
    """Sum of all squares in each position, of as many as the longest row has, ``(seq,)``."""

    @property
    def clipped_share(self) -> float:
        """Of all numbers."""
        return float(self.clipped.sum()) / (self.clipped.numel() * self.count)

    @property
    def lost(self) -> Tensor:
        """What rounding changed over what varies, ``(heads, channels)``.

        Root mean squares, the second round the mean of each channel: what is the same in every
        token tells nothing.
        """
        mean = self.total / self.count
        variance = (self.squares / self.count - mean.square()).clamp(min=0.0)
        error = self.errors / self.count
        return (error / variance).nan_to_num(nan=0.0, posinf=0.0).sqrt()

    def merge(self, other: PartStats) -> PartStats:
        """Of both batches."""
        longer, shorter = sorted(
            (self.squares_by_position, other.squares_by_position), key=len, reverse=True
        )
        by_position = longer.clone()
        by_position[: len(shorter)] += shorter
        return PartStats(
            largest=torch.maximum(self.largest, other.largest),
            total=self.total + other.total,
            squares=self.squares + other.squares,
            errors=self.errors + other.errors,
            clipped=self.clipped + other.clipped,
            count=self.count + other.count,
            squares_by_position=by_position,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Storing:
    """Which parts of a run are stored in its format, and who is shown them."""

    is_stored: Callable[[str], bool] = lambda _part: True
    """By name: ``3.keys`` of a cache, ``model.layers.3.mlp.up_proj.weight``; the others stay in the
    dtype."""
    parts: Parts | None = None
    """Records each."""
    largest: Mapping[str, float] = field(default_factory=dict)
    """By part, the largest number that a scale was calibrated for; else that of each tensor."""


@dataclass(slots=True, eq=False)
class Parts:
    """Records every part that a run stores: its name, and what storing it loses."""

    stats: dict[str, PartStats] = field(default_factory=dict)

    def add(
        self,
        part: str,
        tensor: Tensor,
        stored: Tensor,
        numbers: Numbers,
        *,
        largest: float | None = None,
    ) -> None:
        """Adds what a part was, and what is read back.

        Args:
            part: its name.
            tensor: ``(batch, heads, seq, channels)``, or any other shape that ends in channels.
            stored: the same as it is read back.
            numbers: the format.
            largest: the number that a scale was calibrated for; None: that of the tensor.
        """
        found = _stats(tensor, stored, limit=_limit(numbers, largest))
        known = self.stats.get(part)
        self.stats[part] = found if known is None else known.merge(found)


def _limit(numbers: Numbers, largest: float | None) -> float:
    """Beyond it numbers are clipped; infinite where the scale is that of each tensor."""
    edge = edges(numbers)[1]
    if numbers.scale is Scale.UNIT:
        return edge
    return math.inf if largest is None else largest * edge / numbers.element.max


def _stats(tensor: Tensor, stored: Tensor, *, limit: float) -> PartStats:
    values = _by_head(tensor)
    error = _by_head(stored) - values
    magnitude = values.abs()
    is_clipped = magnitude > limit
    rounding = error.masked_fill(is_clipped, 0.0)
    return PartStats(
        largest=magnitude.amax(dim=(0, 2)),
        total=values.sum(dim=(0, 2)),
        squares=values.square().sum(dim=(0, 2)),
        errors=rounding.square().sum(dim=(0, 2)),
        clipped=is_clipped.double().sum(dim=(0, 2)),
        count=values.shape[0] * values.shape[2],
        squares_by_position=values.square().sum(dim=(0, 1, 3)),
    )


def _by_head(tensor: Tensor) -> Tensor:
    """``(batch, heads, seq, channels)`` in float64."""
    if tensor.dim() == 4:  # noqa: PLR2004
        return tensor.double()
    return tensor.reshape(1, 1, -1, tensor.shape[-1]).double()
