"""What a device really does, in seconds: what float16 products are added up in.

Two products tell a float16 accumulator from a float32 one. Ones times ones, 8,192 of them, are
8,192: float16 stops at 2,048, because 2,049 rounds back to it. And a sum that rises to 262,144
before it falls to zero again is zero in float32, whereas float16 has left its range on the way.
The second is asked with few rows and many summands as well, where libraries split the sum over
blocks and may add those up in float16 (split-K).
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
"""A shape that is split over blocks: a small result of a long sum."""
_SUMMAND = 64.0


def float16_sums(
    device: str, *, product: Callable[[Tensor, Tensor], Tensor] = torch.mm
) -> Float16Sums | None:
    """What float16 products of this device are added up in; None: in float16 throughout.

    Args:
        device: where to multiply.
        product: how; torch's own unless a kernel is being tested.
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
