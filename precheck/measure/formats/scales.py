"""What numbers are divided by before they are rounded, and multiplied by afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from precheck.facts.formats import Numbers, Scale, ScaleElement
from precheck.measure.formats.integers import integer_range

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Of each group, in float32, of a shape that broadcasts against the grouped tensor."""

    divisor: Tensor
    multiplier: Tensor
    """The divisor as it is stored."""
    offset: Tensor | None = None
    """Stored number zero stands for it."""

    def scaled(self, tensor: Tensor, *, is_reciprocal: bool) -> Tensor:
        """Numbers in units of the element: a new tensor, zero where a group has no range."""
        shifted = tensor if self.offset is None else tensor - self.offset
        if is_reciprocal:
            return shifted * torch.where(self.divisor == 0, 0.0, 1.0 / self.divisor)
        return shifted / torch.where(self.divisor == 0, 1.0, self.divisor)

    def unscaled(self, rounded: Tensor) -> Tensor:
        """What is read back; overwrites its argument."""
        rounded.mul_(self.multiplier)
        return rounded if self.offset is None else rounded.add_(self.offset)


def scaling_of(grouped: Tensor, numbers: Numbers, dims: tuple[int, ...]) -> Scaling | None:
    """The scale of every group; None where the format has none.

    A group with a NaN has a scale of NaN, and one with an Inf a scale of Inf: nothing in it stays
    finite, as in the engines.

    Args:
        grouped: in float32.
        numbers: how it is stored.
        dims: in which numbers share a scale.
    """
    if numbers.scale is Scale.UNIT:
        return None
    if numbers.scale is Scale.MIN_MAX:
        return _from_min_max(grouped, numbers, dims)
    divisor = _divisor(grouped, numbers, dims)
    if numbers.smallest_scale:
        divisor.clamp_(min=numbers.smallest_scale)
    if numbers.scale_element is ScaleElement.FLOAT16:
        return Scaling(divisor=divisor, multiplier=divisor.half().float())
    return Scaling(divisor=divisor, multiplier=divisor)


def largest_magnitude(grouped: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Of each group, kept as dimensions of one; without a copy of the tensor."""
    lowest, highest = grouped.amin(dims, keepdim=True), grouped.amax(dims, keepdim=True)
    return torch.maximum(highest, lowest.neg_())


def _from_min_max(grouped: Tensor, numbers: Numbers, dims: tuple[int, ...]) -> Scaling:
    lowest, highest = grouped.amin(dims, keepdim=True), grouped.amax(dims, keepdim=True)
    least, most = integer_range(numbers)
    divisor = (highest - lowest) / (most - least)
    return Scaling(divisor=divisor, multiplier=divisor, offset=lowest)


def _divisor(grouped: Tensor, numbers: Numbers, dims: tuple[int, ...]) -> Tensor:
    if numbers.scale is Scale.SIGNED_AMAX:
        # Of two that are equally large, the first gives the sign.
        where = grouped.abs().argmax(-1, keepdim=True)
        return grouped.gather(-1, where) / integer_range(numbers)[0]
    amax = largest_magnitude(grouped, dims)
    if numbers.scale is Scale.RANGE:
        return amax / (numbers.element.max + 0.5)
    return amax / numbers.element.max
