"""Rounding to small integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.formats import Numbers, Rounding

if TYPE_CHECKING:
    from torch import Tensor


def integer_range(numbers: Numbers) -> tuple[int, int]:
    """The lowest and the highest integer that is stored.

    >>> from precheck.facts.formats import cache_format
    >>> integer_range(cache_format("q4_0").keys), integer_range(cache_format("int4").keys)
    ((-8, 7), (0, 15))
    """
    highest = int(numbers.element.max)
    return (-highest - 1, highest) if numbers.is_symmetric else (0, 2 * highest + 1)


def nearest_integer(tensor: Tensor, numbers: Numbers) -> Tensor:
    """The nearest integers in float32; what is beyond the range is clipped.

    Args:
        tensor: in float32.
        numbers: how it is stored.
    """
    lowest, highest = integer_range(numbers)
    match numbers.rounding:
        case Rounding.HALF_EVEN:
            rounded = tensor.round()
        case Rounding.HALF_AWAY:
            # Not trunc(x + 0.5): that sum rounds the number below a half up.
            whole = tensor.trunc()
            rounded = (tensor - whole).mul_(2).trunc_().add_(whole)
        case Rounding.HALF_UP:
            # As ggml: the sum is positive, and a cast to an integer cuts its fraction off.
            rounded = (tensor + (0.5 - lowest)).trunc_().add_(lowest)
        case Rounding.TOWARD_ZERO:
            rounded = tensor.trunc()
    return rounded.clamp_(lowest, highest)
