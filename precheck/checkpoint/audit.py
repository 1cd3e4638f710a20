"""What the stored weights are, and what float16 would make of them, before anything runs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.records.report import CheckpointAudit, TensorFault
from precheck.records.stats import TensorStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.checkpoint.weights import Weights

CHUNK_ELEMENTS = 1 << 18
"""Elements looked at together: about a megabyte of temporaries, which stays in the cache."""

_FLOAT16_MAGNITUDE_BITS = 0x7FFF
_FLOAT16_SMALLEST_NORMAL_BITS = 0x0400
_FLOAT16_INF_BITS = 0x7C00
"""Bit patterns of IEEE 754-2008 binary16: without its sign a finite one is an ordered integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAudit:
    """What one tensor, or a part of it, is and becomes in float16."""

    stats: TensorStats = field(default_factory=TensorStats)
    num_float16_inf: int = 0
    """Finite elements that the cast makes infinite."""
    num_float16_zero: int = 0
    """Nonzero elements that the cast makes zero."""
    num_float16_subnormal: int = 0
    """Elements that are subnormal after the cast."""

    def merge(self, other: TensorAudit) -> TensorAudit:
        """The audit of both sets of elements together."""
        return TensorAudit(
            stats=self.stats.merge(other.stats),
            num_float16_inf=self.num_float16_inf + other.num_float16_inf,
            num_float16_zero=self.num_float16_zero + other.num_float16_zero,
            num_float16_subnormal=self.num_float16_subnormal + other.num_float16_subnormal,
        )


def audit_weights(weights: Weights) -> CheckpointAudit:
    """The content of every floating-point tensor, each read once, in slices.

    Fills the fields that need no model: ``nonfinite``, ``out_of_float16_range``, the counts and
    the size. What float16 makes of a weight is asked of torch's own cast, the one that loading
    with ``dtype=torch.float16`` does.
    """
    total = TensorAudit()
    nonfinite: list[TensorFault] = []
    out_of_range: list[TensorFault] = []
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        audit = audit_tensor(tensor)
        total = total.merge(audit)
        abs_max = audit.stats.abs_max
        for faults, count in (
            (nonfinite, audit.stats.num_nonfinite),
            (out_of_range, audit.num_float16_inf),
        ):
            if count:
                faults.append(TensorFault(name=name, num_elements=count, abs_max=abs_max))
    return CheckpointAudit(
        nonfinite=tuple(nonfinite),
        out_of_float16_range=tuple(out_of_range),
        num_elements=total.stats.num_elements,
        num_float16_zero=total.num_float16_zero,
        num_float16_subnormal=total.num_float16_subnormal,
        size_bytes=weights.size_bytes,
    )


def audit_tensor(tensor: torch.Tensor, *, chunk_elements: int = CHUNK_ELEMENTS) -> TensorAudit:
    """The audit of a floating-point tensor of any shape, ``chunk_elements`` at a time.

    >>> audit_tensor(torch.tensor([65504.0, 65520.0])).num_float16_inf
    1
    """
    audit = TensorAudit()
    for chunk in _chunks(tensor.detach(), chunk_elements=chunk_elements):
        audit = audit.merge(_audit_chunk(chunk))
    return audit


def tensor_dtypes(weights: Weights) -> dict[str, int]:
    """Stored elements by dtype name, ``{"bfloat16": 7615616512}``, from the headers alone."""
    elements: Counter[str] = Counter()
    for name in weights:
        elements[weights.dtype(name)] += math.prod(weights.shape(name))
    return dict(elements)


def _chunks(tensor: torch.Tensor, *, chunk_elements: int) -> Iterator[torch.Tensor]:
    # Order does not matter here: walking the dimensions as they lie in memory flattens a
    # transposed tensor without copying it.
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    yield from tensor.permute(by_stride).reshape(-1).split(chunk_elements)


def _audit_chunk(chunk: torch.Tensor) -> TensorAudit:
    if chunk.numel() == 0:
        return TensorAudit()
    if chunk.itemsize == 1:
        # torch has no reductions for the 8-bit formats; float32 holds all their values.
        chunk = chunk.float()
    stats = _stats(chunk)
    # Integer comparisons of the bits are several times cheaper on a CPU than float16 ones.
    half = chunk.to(torch.float16).view(torch.int16) & _FLOAT16_MAGNITUDE_BITS
    num_half_zero = half.numel() - int(half.count_nonzero())
    num_half_tiny = int((half < _FLOAT16_SMALLEST_NORMAL_BITS).count_nonzero())
    num_half_inf = int((half == _FLOAT16_INF_BITS).count_nonzero())
    num_zero = chunk.numel() - int(chunk.count_nonzero()) if num_half_zero else 0
    return TensorAudit(
        stats=stats,
        num_float16_inf=num_half_inf - stats.num_inf,
        num_float16_zero=num_half_zero - num_zero,
        num_float16_subnormal=num_half_tiny - num_half_zero,
    )


def _stats(chunk: torch.Tensor) -> TensorStats:
    low, high = (float(each) for each in torch.aminmax(chunk))
    if math.isfinite(low) and math.isfinite(high):
        return TensorStats(num_elements=chunk.numel(), abs_max=max(-low, high, 0.0))
    magnitudes = chunk[chunk.isfinite()].abs()
    return TensorStats(
        num_elements=chunk.numel(),
        num_nan=int(chunk.isnan().sum()),
        num_inf=int(chunk.isinf().sum()),
        abs_max=float(magnitudes.max()) if magnitudes.numel() else None,
    )
