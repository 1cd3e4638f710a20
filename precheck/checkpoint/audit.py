"""What the stored weights are, and what float16 would make of them, before anything runs."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from precheck.records.report import CheckpointAudit, TensorFault
from precheck.records.stats import TensorStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from precheck.checkpoint.weights import Weights

CHUNK_ELEMENTS = 1 << 18
"""Elements looked at together: few enough for the cache."""

_FLOAT16_MAGNITUDE_BITS = 0x7FFF
_FLOAT16_SMALLEST_NORMAL_BITS = 0x0400
_FLOAT16_INF_BITS = 0x7C00
"""Bit patterns of IEEE 754-2008 binary16: without its sign a finite one is an ordered integer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Magnitudes:
    """A dtype's bit patterns without the sign, and from which one on float16 makes what of it.

    Ties go to even: 65,520 to infinity, 2^-14 - 2^-25 to 2^-14, the smallest normal number, and
    2^-25 to zero.
    """

    integer: torch.dtype
    infinite: int
    float16_infinite: int
    float16_normal: int
    float16_nonzero: int

    def value(self, magnitude: int, dtype: torch.dtype) -> float:
        """The number that a magnitude stands for."""
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


class CheckpointAuditor:
    """Gathers what the tensors of a checkpoint are, as they are read.

    Args:
        weights: the checkpoint; its order is the report's.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._found: dict[str, TensorAudit] = {}
        self._checksums: dict[str, int] = {}
        self._num_taken: Counter[str] = Counter()
        self._scratch = _Scratch()

    def has(self, name: str) -> bool:
        """Whether something of this tensor was seen."""
        return name in self._found

    def add(self, name: str, tensor: torch.Tensor) -> TensorAudit:
        """Takes a tensor, or the rows of it that come next; returns what they are."""
        audit = TensorAudit()
        self._checksums[name] = _checksum(tensor, self._checksums.get(name, 0))
        self._num_taken[name] += tensor.numel()
        if tensor.is_floating_point():
            audit = _audit_tensor(tensor, CHUNK_ELEMENTS, self._scratch)
        self._found[name] = self._found.get(name, TensorAudit()).merge(audit)
        return audit

    def result(self) -> CheckpointAudit:
        """Of what was seen; fills the fields that need no model."""
        total = TensorAudit()
        nonfinite: list[TensorFault] = []
        out_of_range: list[TensorFault] = []
        for name in self._weights:
            audit = self._found.get(name, TensorAudit())
            total = total.merge(audit)
            for faults, count in (
                (nonfinite, audit.stats.num_nonfinite),
                (out_of_range, audit.num_float16_inf),
            ):
                if count:
                    abs_max = audit.stats.abs_max
                    faults.append(TensorFault(name=name, num_elements=count, abs_max=abs_max))
        return CheckpointAudit(
            nonfinite=tuple(nonfinite),
            out_of_float16_range=tuple(out_of_range),
            num_elements=total.stats.num_elements,
            num_float16_zero=total.num_float16_zero,
            num_float16_subnormal=total.num_float16_subnormal,
            size_bytes=self._weights.size_bytes,
            digest=self._digest(list(self._weights)),
            digests=self._digests(),
        )

    def _digest(self, names: list[str]) -> str | None:
        """SHA-256 over name, dtype, shape and checksum; None if not all were read to the end."""
        shapes = {name: tuple(self._weights.shape(name)) for name in names}
        if any(self._num_taken[name] != math.prod(shape) for name, shape in shapes.items()):
            return None
        lines = (
            f"{name} {self._weights.dtype(name)} {shape} {self._checksums.get(name, 0):08x}\n"
            for name, shape in sorted(shapes.items())
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _digests(self) -> dict[str, str]:
        layers: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._weights:
            layers[_layer_of(name)].append(name)
        found = {layer: self._digest(names) for layer, names in layers.items()}
        return {layer: digest[:8] for layer, digest in found.items() if digest is not None}


def _layer_of(tensor: str) -> str:
    """The repeated block a tensor belongs to, else its module.

    >>> _layer_of("model.layers.3.mlp.up_proj.weight"), _layer_of("lm_head.weight")
    ('model.layers.3', 'lm_head')
    """
    parts = tensor.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: len(parts) - 1 if number is None else number + 1]) or tensor


def _checksum(tensor: torch.Tensor, before: int) -> int:
    """CRC-32 of a tensor's bytes in the order of its elements, going on from the one before."""
    for chunk in tensor.detach().cpu().contiguous().view(-1).split(CHUNK_ELEMENTS):
        before = zlib.crc32(chunk.view(torch.uint8).numpy(), before)
    return before


def audit_weights(weights: Weights) -> CheckpointAudit:
    """The content of every floating-point tensor, each read once, in slices."""
    auditor = CheckpointAuditor(weights)
    for name, tensor in weights.items():
        auditor.add(name, tensor)
    return auditor.result()


def audit_tensor(tensor: torch.Tensor, *, chunk_elements: int = CHUNK_ELEMENTS) -> TensorAudit:
    """The audit of a floating-point tensor of any shape, ``chunk_elements`` at a time.

    >>> audit_tensor(torch.tensor([65504.0, 65520.0])).num_float16_inf
    1
    """
    return _audit_tensor(tensor, chunk_elements, _Scratch())


def _audit_tensor(tensor: torch.Tensor, chunk_elements: int, scratch: _Scratch) -> TensorAudit:
    audit = TensorAudit()
    for chunk in _chunks(tensor.detach(), chunk_elements=chunk_elements):
        audit = audit.merge(_audit_chunk(chunk, scratch))
    return audit


class _Scratch:
    """Memory for a chunk, used again: new memory would take longer than the counting."""

    def __init__(self) -> None:
        self._kept: dict[np.dtype[Any], NDArray[Any]] = {}

    def take(self, size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array ``(size,)``, the same memory for every dtype's next one; content undefined."""
        kept = self._kept.get(dtype)
        if kept is None or kept.size < size:
            kept = self._kept[dtype] = np.empty(size, dtype)
        return kept[:size]

    def count_below(self, magnitudes: NDArray[Any], limit: int, *, smallest: int) -> int:
        """How many are below the limit, where the smallest of them is known."""
        if smallest >= limit:
            return 0
        below = self.take(magnitudes.size, np.dtype(bool))
        return int(np.count_nonzero(np.less(magnitudes, limit, out=below)))


def _chunks(tensor: torch.Tensor, *, chunk_elements: int) -> Iterator[torch.Tensor]:
    # Order does not matter here: walking the dimensions as they lie in memory flattens a
    # transposed tensor without copying it.
    by_stride = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    yield from tensor.permute(by_stride).reshape(-1).split(chunk_elements)


def _audit_chunk(chunk: torch.Tensor, scratch: _Scratch) -> TensorAudit:
    if chunk.numel() == 0:
        return TensorAudit()
    if chunk.itemsize == 1:
        # torch has no reductions for the 8-bit formats; float32 holds all their values.
        chunk = chunk.float()
    kind = _MAGNITUDES.get(chunk.dtype)
    if kind is None:
        return _audit_by_cast(chunk)
    # numpy compares integers several times faster than torch, and needs no second thread for it
    bits = chunk.view(kind.integer).numpy()
    magnitudes = np.bitwise_and(
        bits, np.iinfo(bits.dtype).max, out=scratch.take(bits.size, bits.dtype)
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
    """The same by torch's own cast: for chunks that are not finite, and for float64."""
    stats = _stats(chunk)
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
