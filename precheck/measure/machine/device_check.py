"""Measures in which dtype a device accumulates float16 products; takes seconds.

Two products tell a float16 accumulator from a float32 one. 8,192 ones times ones are 8,192, but a
float16 accumulator stops at 2,048, because 2,049 rounds back to it. A sum that rises to 262,144
and falls back to zero is zero in float32, but overflows on the way in float16. The second product
is also run with few rows and many summands: there libraries split the sum over blocks and may add
the parts in float16 (split-K).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.facts.hardware import Float16Sums

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_DEPTH = 8192
"""Summands; a float16 accumulator of ones stops at 2,048."""
_ROWS = 256
_SPLIT_DEPTH, _SPLIT_ROWS = 1 << 17, 16
"""A shape whose sum is split over blocks: few results with many summands each."""
_SUMMAND = 64.0


def float16_sums(
    device: str, *, product: Callable[[Tensor, Tensor], Tensor] = torch.mm
) -> Float16Sums | None:
    """The dtype in which this device accumulates float16 products; None if it is float16.

    Args:
        device: the torch device.
        product: multiplies two matrices; torch's own unless a kernel is being tested.
    """
    ones = torch.ones(_ROWS, _DEPTH, dtype=torch.float16, device=device)
    counts = product(ones, ones.T.contiguous())
    if not bool((counts == _DEPTH).all()) or not _returns_to_zero(product, _ROWS, _DEPTH, device):
        return None
    if not _returns_to_zero(product, _SPLIT_ROWS, _SPLIT_DEPTH, device):
        return Float16Sums.SPLIT_K
    return Float16Sums.FLOAT32


def _returns_to_zero(
    product: Callable[[Tensor, Tensor], Tensor], rows: int, depth: int, device: str
) -> bool:
    """Whether a sum that rises beyond float16 and falls again ends at zero."""
    left = torch.ones(rows, depth, dtype=torch.float16, device=device)
    right = torch.full((depth, rows), _SUMMAND, dtype=torch.float16, device=device)
    right[depth // 2 :] = -_SUMMAND
    return bool((product(left, right) == 0).all())
