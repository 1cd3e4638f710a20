"""The range of a stored tensor, and what a cast to float16 does to it, counted exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.records.stats import TensorStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


CHUNK_ELEMENTS = 1 << 18
"""Elements audited at a time: few enough for the cache."""

_FLOAT16_MAGNITUDE_BITS = 0x7FFF
_FLOAT16_SMALLEST_NORMAL_BITS = 0x0400
_FLOAT16_INF_BITS = 0x7C00
"""Bit patterns of IEEE 754-2008 binary16: without its sign a finite one is an ordered integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Magnitudes:
    """Bit patterns of a dtype without the sign, where the cast to float16 changes its result.

    Ties go to even: 65,520 to infinity, 2^-14 - 2^-25 to 2^-14, the smallest normal number, and
    2^-25 to zero.
    """

    integer: torch.dtype
    """Dtype that the patterns are compared in."""
    infinite: int
    """Infinity; larger ones are NaN."""
    float16_infinite: int
    """The smallest that becomes infinite."""
    float16_normal: int
    """The smallest that becomes a normal number."""
    float16_nonzero: int
    """The smallest that does not become zero."""

    def value(self, magnitude: int, dtype: torch.dtype) -> float:
        """The number with this bit pattern."""
        return float(torch.tensor(magnitude, dtype=self.integer).view(dtype))


_MAGNITUDES = {
    torch.float32: _Magnitudes(
        integer=torch.int32,
        infinite=0x7F800000,
        float16_infinite=0x477FF000,
        float16_normal=0x387FE000,
        float16_nonzero=0x33000001,
    ),
    torch.bfloat16: _Magnitudes(
        integer=torch.int16,
        infinite=0x7F80,
        float16_infinite=0x4780,
        float16_normal=0x3880,
        float16_nonzero=0x3301,
    ),
    torch.float16: _Magnitudes(
        integer=torch.int16,
        infinite=_FLOAT16_INF_BITS,
        float16_infinite=_FLOAT16_INF_BITS,
        float16_normal=_FLOAT16_SMALLEST_NORMAL_BITS,
        float16_nonzero=1,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorAudit:
    """The range of one tensor, or a part of it, and what a cast to float16 does to it."""

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


def audit_tensor(
    tensor: torch.Tensor,
    *,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> TensorAudit:
    """The audit of a floating-point tensor of any shape, ``chunk_elements`` at a time.

    Args:
        tensor: on the CPU.
        chunk_elements: how many are audited at a time.

    >>> audit_tensor(torch.tensor([65504.0, 65520.0])).num_float16_inf
    1
    """
    scratch = Scratch()
    audit = TensorAudit()
    for chunk in _chunks(tensor.detach(), chunk_elements=chunk_elements):
        audit = audit.merge(audit_chunk(chunk, scratch))
    return audit


class Scratch:
    """Memory for one chunk that is used again: allocating it would take longer than counting."""

    def __init__(self) -> None:
        self._arrays: dict[np.dtype[Any], NDArray[Any]] = {}

    def array(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array ``(size,)``, its content undefined; valid until the next one of its dtype."""
        array = self._arrays.get(dtype)
        if array is None or array.size < size:
            array = self._arrays[dtype] = np.empty(size, dtype)
        return array[:size]

    def count_below(self, magnitudes: NDArray[Any], limit: int, *, smallest: int) -> int:
        """How many are below the limit; none if the smallest is not."""
        if smallest >= limit:
            return 0
        below = self.array(magnitudes.size, np.dtype(bool))
        return int(np.count_nonzero(np.less(magnitudes, limit, out=below)))


def _chunks(tensor: torch.Tensor, *, chunk_elements: int) -> Iterator[torch.Tensor]:
    # Order does not matter here: walking the dimensions as they lie in memory flattens a
    # transposed tensor without copying it.
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    yield from tensor.permute(by_stride).reshape(-1).split(chunk_elements)


def audit_chunk(chunk: torch.Tensor, scratch: Scratch) -> TensorAudit:
    """The audit of few enough elements for the cache, ``(elements,)``, on the CPU."""
    if chunk.numel() == 0:
        return TensorAudit()
    if chunk.itemsize == 1:
        # torch has no reductions for the 8-bit formats; float32 holds all their values.
        chunk = chunk.float()
    kind = _MAGNITUDES.get(chunk.dtype)
    if kind is None:
        return _audit_by_cast(chunk)
    # numpy compares integers several times faster than torch, and in one thread
    bits = chunk.view(kind.integer).numpy()
    magnitudes = np.bitwise_and(
        bits, np.iinfo(bits.dtype).max, out=scratch.array(bits.size, bits.dtype)
    )
    smallest, largest = int(magnitudes.min()), int(magnitudes.max())
    if largest >= kind.infinite:
        return _audit_by_cast(chunk)
    count_below = partial(scratch.count_below, magnitudes, smallest=smallest)
    num_inf = 0
    if largest >= kind.float16_infinite:
        num_inf = bits.size - count_below(kind.float16_infinite)
    num_tiny = count_below(kind.float16_normal)
    num_half_zero = count_below(kind.float16_nonzero)
    num_zero = count_below(1)
    return TensorAudit(
        stats=TensorStats(num_elements=chunk.numel(), abs_max=kind.value(largest, chunk.dtype)),
        num_float16_inf=num_inf,
        num_float16_zero=num_half_zero - num_zero,
        num_float16_subnormal=num_tiny - num_half_zero,
    )


def _audit_by_cast(chunk: torch.Tensor) -> TensorAudit:
    """The audit by torch's own cast: for chunks that are not finite, and for float64."""
    stats = tensor_stats(chunk)
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
