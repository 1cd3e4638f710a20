"""A tensor becomes the statistics that records keep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.records.stats import TensorStats

if TYPE_CHECKING:
    from torch import Tensor


def tensor_stats(tensor: Tensor) -> TensorStats:
    """Counts and largest finite magnitude of a floating-point tensor of any shape and dtype.

    One read decides whether the tensor is finite; only one that is not is read again. The
    magnitude is exact: comparing and taking absolute values do not round.
    """
    if tensor.numel() == 0:
        return TensorStats()
    low, high = (bound.item() for bound in torch.aminmax(tensor))
    if math.isfinite(low) and math.isfinite(high):
        return TensorStats(num_elements=tensor.numel(), abs_max=float(max(abs(low), abs(high))))
    num_nan = int(tensor.isnan().sum())
    finite = tensor[tensor.isfinite()]
    return TensorStats(
        num_elements=tensor.numel(),
        num_nan=num_nan,
        num_inf=tensor.numel() - num_nan - finite.numel(),
        abs_max=float(finite.abs().max()) if finite.numel() else None,
    )
