"""Which numbers of the reference are masks, so that -inf in their place is no fault."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.measure.watch.op_kinds import MASK_NUMBER, MASK_SENTINEL, MULTIPLIES, PRODUCTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from precheck.measure.watch.segment import OpNode


def mask_threshold(node: OpNode, input_bounds: Iterable[tuple[float, float]]) -> float:
    """At or below which number of the reference an operation masks, if its inputs are clean.

    Masks such as -1e10, which float32 holds and float16 does not, become -inf where they are
    written, moved or added. The sum of two numbers of a dtype is never below twice its smallest:
    below that, an input was no such number.

    Args:
        node: the operation of the 16-bit run.
        input_bounds: minimum and maximum of each of its inputs.
    """
    bounds = list(input_bounds)
    if node.dtype is None or node.op in PRODUCTS:
        return MASK_SENTINEL
    if node.op in MULTIPLIES:
        return MASK_NUMBER if len(bounds) == 1 else MASK_SENTINEL
    limits = torch.finfo(node.dtype)
    if any(low < limits.min or high > limits.max for low, high in bounds):
        return max(2 * limits.min, MASK_SENTINEL)
    return MASK_SENTINEL


def cast_reference(source: Tensor, dtype: torch.dtype) -> Tensor:
    """The input of a cast to ``dtype`` with its masks as -inf, as the reference has them.

    Masks of a 16-bit model that are added in float32 (ProphetNet) are exactly twice the dtype's
    smallest number; no activation is.
    """
    mask = source <= max(MASK_NUMBER, torch.finfo(source.dtype).min / 2)
    smallest = torch.finfo(dtype).min
    values = source.float()
    mask |= (source < smallest) & (values.fmod(smallest) == 0)
    return values.masked_fill(mask, -math.inf)
