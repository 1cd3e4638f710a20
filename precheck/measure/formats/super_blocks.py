"""Scales of ggml's K-quants, which are integers times one float16 number for 256 numbers.

**Source**: ``quantize_row_q4_K_ref`` and ``quantize_row_q6_K_ref`` in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_GROUPS_OF_32 = 8
_GROUPS_OF_16 = 16


def divided(number: float, tensor: Tensor) -> Tensor:
    """The quotient as C computes it: torch multiplies a number by the reciprocal of the tensor."""
    return torch.tensor(float(number), device=tensor.device) / tensor


def in_6_bits(scales: Tensor) -> Tensor:
    """The scales of groups of 32 as they are read back, from 0 to 63 times a number.

    Args:
        scales: ``(..., group)``, in float32; 8 groups of a row share a number.
    """
    blocks = scales.reshape(*scales.shape[:-1], -1, _GROUPS_OF_32)
    largest = blocks.amax(-1, keepdim=True).clamp_(min=0.0)
    codes = (blocks * torch.where(largest > 0, divided(63, largest), 0.0)).round_().clamp_(max=63)
    return (codes * (largest / 63).half().float()).view_as(scales)


def in_8_bits(scales: Tensor) -> Tensor:
    """The scales of groups of 16 as they are read back, from -128 to 127 times a number.

    Args:
        scales: ``(..., group)``, in float32; 16 groups of a row share a number.
    """
    blocks = scales.reshape(*scales.shape[:-1], -1, _GROUPS_OF_16)
    # Of two that are equally large, the first gives the sign.
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = torch.where(largest == 0, 0.0, divided(-128, largest))
    codes = (blocks * inverse).round_().clamp_(max=127)
    number = torch.where(largest == 0, 0.0, 1 / inverse).half().float()
    return (codes * number).view_as(scales)
