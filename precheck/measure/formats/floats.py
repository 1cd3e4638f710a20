"""Rounding to small floating-point formats with arithmetic that every device has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from precheck.facts.formats import Element

if TYPE_CHECKING:
    from torch import Tensor

EXPONENT_OF_FLOAT32 = 0x7F800000
"""Where the bits of an exponent are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallFloat:
    """The layout of a format.

    **Source**: OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2), OCP Microscaling Formats
    1.0 (E2M1), arXiv 2206.02915 (the FNUZ variant). A test equates each with all its numbers.
    """

    num_mantissa_bits: int
    smallest_exponent: int
    has_inf: bool = False
    has_negative_zero: bool = True


FLOATS = {
    Element.E4M3: SmallFloat(num_mantissa_bits=3, smallest_exponent=-6),
    Element.E4M3FNUZ: SmallFloat(
        num_mantissa_bits=3, smallest_exponent=-7, has_negative_zero=False
    ),
    Element.E5M2: SmallFloat(num_mantissa_bits=2, smallest_exponent=-14, has_inf=True),
    Element.E2M1: SmallFloat(num_mantissa_bits=1, smallest_exponent=0),
}


def nearest_float(
    tensor: Tensor, element: Element, *, saturates: bool, toward_zero: bool = False
) -> Tensor:
    """The nearest numbers of the format, a tie to the even one.

    Args:
        tensor: in float32.
        element: a floating-point format.
        saturates: what is too large, and Inf, becomes the largest number; else Inf where the format
            has it, and NaN where it has not.
        toward_zero: not the nearest, but the next one toward zero.
    """
    layout = FLOATS[element]
    reach = element.max if saturates else 2 * element.max
    clipped = tensor.clamp(-reach, reach)
    step = steps(clipped, layout)
    # A step is a power of two: the quotient is exact.
    codes = clipped.div_(step)
    rounded = (codes.trunc_() if toward_zero else codes.round_()).mul_(step)
    if not saturates:
        beyond = math.inf if layout.has_inf else math.nan
        rounded = torch.where(rounded.abs() > element.max, beyond * rounded.sign(), rounded)
    return rounded if layout.has_negative_zero else rounded.add_(0.0)


def steps(tensor: Tensor, layout: SmallFloat) -> Tensor:
    """The distance between neighbours of the format where each number is.

    Args:
        tensor: finite, in float32.
        layout: of the format.
    """
    power = tensor.view(torch.int32).bitwise_and(EXPONENT_OF_FLOAT32).view(torch.float32)
    return power.clamp_(min=2.0**layout.smallest_exponent).mul_(2.0**-layout.num_mantissa_bits)


def widest_step(element: Element) -> float:
    """The distance between the two largest numbers of the format."""
    largest = torch.tensor(element.max, dtype=torch.float32)
    return steps(largest, FLOATS[element]).item()
