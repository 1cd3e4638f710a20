"""Reduces a tensor to the statistics that records keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.records.stats import TensorStats

if TYPE_CHECKING:
    from torch import Tensor

MASK_SENTINEL = torch.finfo(torch.float32).min / 2
"""At or below it a float32 value is a mask, not a number: no activation comes near 1.7e38."""


def tensor_stats(tensor: Tensor) -> TensorStats:
    """Counts and largest finite magnitude of a floating-point tensor of any shape and dtype.

    One read decides whether the tensor is finite; only if it is not is it read again. The
    magnitude is exact: comparing and taking absolute values do not round.
    """
    if tensor.numel() == 0:
        return TensorStats()
    low, high = (bound.item() for bound in torch.aminmax(tensor))
    if abs(low) < float("inf") and abs(high) < float("inf"):
        return TensorStats(num_elements=tensor.numel(), abs_max=float(max(abs(low), abs(high))))
    num_nan = int(tensor.isnan().sum())
    finite = tensor[tensor.isfinite()]
    return TensorStats(
        num_elements=tensor.numel(),
        num_nan=num_nan,
        num_inf=tensor.numel() - num_nan - finite.numel(),
        abs_max=float(finite.abs().max()) if finite.numel() else None,
    )
