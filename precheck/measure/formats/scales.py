"""What numbers are divided by before they are rounded, and multiplied by afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from precheck.facts.formats import Element, Granularity, Multiplier, Numbers, Scale, ScaleElement
from precheck.measure.formats.floats import EXPONENT_OF_FLOAT32, nearest_float
from precheck.measure.formats.integers import integer_range
from precheck.measure.formats.searches import scales_and_offsets, signed_scales
from precheck.measure.formats.super_blocks import divided, in_6_bits, in_8_bits

if TYPE_CHECKING:
    from torch import Tensor

_QUARTER = 1 << 21
"""Of a power of two in the bits of a float32 mantissa."""
_SMALLEST_E8M0 = 2.0**-127


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """Of each group, in float32, of a shape that broadcasts against the grouped tensor."""

    divisor: Tensor
    multiplier: Tensor
    """The divisor as it is stored."""
    offset: Tensor | None = None
    """Stored number zero stands for it."""
    factor: Tensor | None = None
    """Numbers are multiplied by it, not divided by the divisor."""

    def scaled(self, tensor: Tensor) -> Tensor:
        """Numbers in units of the element: a new tensor, zero where a group has no range."""
        if self.factor is not None:
            return tensor * self.factor
        shifted = tensor if self.offset is None else tensor - self.offset
        return shifted / torch.where(self.divisor == 0, 1.0, self.divisor)

    def unscaled(self, rounded: Tensor) -> Tensor:
        """What is read back; overwrites its argument."""
        rounded.mul_(self.multiplier)
        return rounded if self.offset is None else rounded.add_(self.offset)


def scaling_of(
    grouped: Tensor, numbers: Numbers, dims: tuple[int, ...], *, calibrated_amax: float | None
) -> Scaling | None:
    """The scale of every group; None where the format has none.

    A group with a NaN has a scale of NaN, and one with an Inf a scale of Inf: nothing in it stays
    finite, as in the engines.

    Args:
        grouped: in float32.
        numbers: how it is stored.
        dims: in which numbers share a scale.
        calibrated_amax: as for ``as_stored``.
    """
    if numbers.scale is Scale.UNIT:
        return None
    if numbers.scale is Scale.MIN_MAX:
        return _from_min_max(grouped, numbers, dims)
    if numbers.scale is Scale.SEARCHED:
        return _searched(grouped, numbers)
    if numbers.scale is Scale.SEARCHED_MIN_MAX:
        return _searched_min_max(grouped, numbers)
    if numbers.scale is Scale.SIGNED_AMAX:
        divisor = _signed(grouped, numbers)
    else:
        amax = largest_magnitude(grouped, dims)
        divisor = _divisor(amax, numbers, calibrated_amax=calibrated_amax)
    if numbers.smallest_scale:
        divisor.clamp_(min=numbers.smallest_scale)
    is_half = numbers.scale_element is ScaleElement.FLOAT16
    return Scaling(
        divisor=divisor,
        multiplier=divisor.half().float() if is_half else divisor,
        factor=_factor(divisor, grouped, numbers, dims),
    )


def _factor(
    divisor: Tensor, grouped: Tensor, numbers: Numbers, dims: tuple[int, ...]
) -> Tensor | None:
    match numbers.multiplied_by:
        case None:
            return None
        case Multiplier.RECIPROCAL:
            factor = divisor.reciprocal()
        case Multiplier.QUOTIENT:
            factor = divided(numbers.element.max, largest_magnitude(grouped, dims))
    # Inf where the divisor is zero, or subnormal.
    return factor.nan_to_num_(nan=math.nan, posinf=0.0, neginf=0.0)


def largest_magnitude(grouped: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Of each group, kept as dimensions of one; without a copy of the tensor."""
    lowest, highest = grouped.amin(dims, keepdim=True), grouped.amax(dims, keepdim=True)
    return torch.maximum(highest, lowest.neg_())


def _from_min_max(grouped: Tensor, numbers: Numbers, dims: tuple[int, ...]) -> Scaling:
    lowest, highest = grouped.amin(dims, keepdim=True), grouped.amax(dims, keepdim=True)
    least, most = integer_range(numbers)
    divisor = (highest - lowest) / (most - least)
    return Scaling(divisor=divisor, multiplier=divisor, offset=lowest)


def _searched_min_max(grouped: Tensor, numbers: Numbers) -> Scaling:
    scales, offsets = scales_and_offsets(grouped, highest=integer_range(numbers)[1])
    divisor = in_6_bits(scales).unsqueeze(-1)
    offset = in_6_bits(offsets.neg_()).neg_().unsqueeze(-1)
    return Scaling(divisor=divisor, multiplier=divisor, offset=offset)


def _searched(grouped: Tensor, numbers: Numbers) -> Scaling:
    scales = signed_scales(grouped, highest=integer_range(numbers)[1])
    divisor = in_8_bits(scales).unsqueeze(-1)
    return Scaling(divisor=divisor, multiplier=divisor)


def _signed(grouped: Tensor, numbers: Numbers) -> Tensor:
    # Of two that are equally large, the first gives the sign.
    where = grouped.abs().argmax(-1, keepdim=True)
    return grouped.gather(-1, where) / integer_range(numbers)[0]


def _divisor(amax: Tensor, numbers: Numbers, *, calibrated_amax: float | None) -> Tensor:
    if numbers.scale is Scale.EXPONENT:
        return _power_of_two(amax, numbers.element)
    whole = amax.amax() if calibrated_amax is None else amax.new_tensor(calibrated_amax)
    if numbers.granularity is Granularity.TENSOR:
        amax = whole.expand(amax.shape)
    divisor = amax / (numbers.element.max + (0.5 if numbers.scale is Scale.RANGE else 0.0))
    if numbers.scale_element is ScaleElement.BFLOAT16:
        return divisor.bfloat16().float()
    if numbers.scale_element is ScaleElement.E4M3:
        return _multiples_of_one_number(divisor, whole, numbers.element)
    return divisor


def _multiples_of_one_number(divisor: Tensor, whole: Tensor, element: Element) -> Tensor:
    """Scales in e4m3 times one number, by which that of the largest magnitude becomes 448."""
    factor = Element.E4M3.max * element.max / whole
    # As compressed-tensors, for an expert that never saw a token.
    factor = factor.nan_to_num_(nan=1.0, posinf=1.0)
    return nearest_float(divisor * factor, Element.E4M3, saturates=True) / factor


def _power_of_two(amax: Tensor, element: Element) -> Tensor:
    # Adding a quarter of a power of two takes what is 1.75 times one, or more, to the next.
    rounded_up = amax.view(torch.int32).add(_QUARTER).bitwise_and(EXPONENT_OF_FLOAT32)
    exponent = math.floor(math.log2(element.max))
    return rounded_up.view(torch.float32).mul(2.0**-exponent).clamp_(min=_SMALLEST_E8M0)
