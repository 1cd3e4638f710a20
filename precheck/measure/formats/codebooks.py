"""Rounding to a list of numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution.

**Source**: QLoRA, arXiv 2305.14314, appendix E.
"""


def nearest_in_codebook(tensor: Tensor, codebook: tuple[float, ...] = NF4) -> Tensor:
    """The nearest numbers of the list, a tie to the lower one.

    Args:
        tensor: in float32.
        codebook: in ascending order.
    """
    codes = tensor.new_tensor(codebook)
    return codes[torch.bucketize(tensor.contiguous(), (codes[1:] + codes[:-1]) / 2)]
