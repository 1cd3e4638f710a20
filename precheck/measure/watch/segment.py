"""Operations as they ran, in segments between unit boundaries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.measure.watch.op_kinds import CASTS, FUSED_ATTENTION, GROUPED_PRODUCT, MASK_SENTINEL
from precheck.measure.watch.source_line import path_on_python_path

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT, HIDDEN, OTHER = -1, -2, -3
"""Origins that are not operations of the segment: a parameter, hidden states, anything else."""


def match_key(module: str, op: str, ordinal: int) -> tuple[str, str, int]:
    """Identifies an operation across runs: all kernels of one operation have one name.

    >>> match_key("mlp.experts", "transformers.grouped_mm_fallback", 0)
    ('mlp.experts', 'grouped_mm', 0)
    """
    name = next((part for part in (FUSED_ATTENTION, GROUPED_PRODUCT) if part in op), op)
    return (module, name, ordinal)


OpPlace = tuple[str, str, int, str]
"""Module, operation, how often it ran there before (-1 for a cast) and source line."""


def place_of(*, module: str, op: str, ordinal: int, source: str) -> OpPlace:
    """What finds an operation of a run among those of a trace.

    >>> place_of(module="mlp", op="aten._to_copy", ordinal=3, source="modeling_llama.py:66")
    ('mlp', 'aten._to_copy', -1, 'modeling_llama.py:66')
    """
    _, name, number = match_key(module, op, ordinal)
    return (module, name, -1 if op in CASTS else number, source)


def next_ordinal(ordinals: dict[tuple[str, str], int], module: str, op: str) -> int:
    """How often ``op`` ran in ``module`` before; ``ordinals`` keeps the counts.

    >>> counts = {}
    >>> [next_ordinal(counts, "mlp", op) for op in ("aten.mm", "aten.mul", "aten.mm")]
    [0, 0, 1]
    """
    key = match_key(module, op, 0)[:2]
    ordinal = ordinals.get(key, 0)
    ordinals[key] = ordinal + 1
    return ordinal


class Origin(NamedTuple):
    """Which operation of the segment made a tensor, and where in its storage a view starts."""

    node: int
    offset: int


@dataclass(slots=True, eq=False, kw_only=True)
class OpNode:
    """One operation as it ran."""

    index: int
    module: str
    op: str
    ordinal: int
    inputs: tuple[Origin, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    is_cast: bool
    has_mask_scalar: bool
    filename: str
    line: int
    sum_bound: float | None = None
    """Of a product that accumulates in float16: the largest ``|x| @ |w|``."""
    overflowed_inside: bool = False
    """Its accumulator overflowed, although its exact result fits."""
    minimum: float | None = None
    maximum: float | None = None
    is_all_real: bool = False
    """No position of the output is padding."""
    real_bounds: tuple[float, float] | None = None
    """Minimum and maximum at real tokens; None if its shape does not tell which they are."""
    bounds_by_bucket: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Minimum and maximum at some positions, by the number of the bucket that they make."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies the operation across runs."""
        return match_key(self.module, self.op, self.ordinal)

    @property
    def source(self) -> str:
        """``modeling_qwen2.py:155``."""
        return f"{PurePath(self.filename).name}:{self.line}"

    @property
    def place(self) -> OpPlace:
        """What finds it among the operations of a trace."""
        return place_of(module=self.module, op=self.op, ordinal=self.ordinal, source=self.source)

    @property
    def source_file(self) -> str | None:
        """``transformers/models/qwen2/modeling_qwen2.py``."""
        return path_on_python_path(self.filename)

    @property
    def is_finite(self) -> bool:
        """Whether every value is finite; True if the op was not reduced."""
        return self.minimum is None or (
            math.isfinite(self.minimum) and math.isfinite(self.maximum or 0.0)
        )

    @property
    def abs_max(self) -> float | None:
        """Largest magnitude at real tokens.

        None if the op was not reduced, holds a mask or is not finite.
        """
        bounds = (self.minimum, self.maximum) if self.is_all_real else self.real_bounds
        return _abs_max(*(bounds or (None, None)))

    @property
    def abs_max_by_bucket(self) -> dict[int, float | None]:
        """The same at the positions of each bucket."""
        return {bucket: _abs_max(*bounds) for bucket, bounds in self.bounds_by_bucket.items()}


def _abs_max(low: float | None, high: float | None) -> float | None:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return None
    return max(abs(low), abs(high)) if low > MASK_SENTINEL else None


class _Pending(NamedTuple):
    """Bounds of an operation's output on the device, not fetched yet."""

    node: OpNode
    low: Tensor
    high: Tensor
    is_real: bool
    """At real tokens; else at all positions."""
    bucket: int | None
    """At the positions of one bucket."""


@dataclass(slots=True, eq=False)
class Segment:
    """The operations between two unit boundaries of one run, in order."""

    nodes: list[OpNode] = field(default_factory=list)
    routes: list[tuple[OpNode, Tensor]] = field(default_factory=list)
    """Indices that every choice of the largest made, int64, ``(tokens, k)`` or ``(tokens,)``."""
    scores: list[tuple[OpNode, Tensor, Tensor]] = field(default_factory=list)
    """Query and key of every fused attention call, ``(batch, heads, seq, head_dim)``."""
    ordinals: dict[tuple[str, str], int] = field(default_factory=dict)
    """The counts of :func:`next_ordinal`."""
    _pending: list[_Pending] = field(default_factory=list)

    def reduce_later(
        self, node: OpNode, output: Tensor, *, is_real: bool = False, bucket: int | None = None
    ) -> None:
        """Reduces on the device, without waiting for the result."""
        low, high = torch.aminmax(_in_memory_order(output))
        self._pending.append(_Pending(node, low, high, is_real, bucket))

    def fetch(self) -> None:
        """Fetches the reduced bounds to the host, with one synchronisation per dtype."""
        by_dtype: dict[torch.dtype, list[_Pending]] = {}
        for pending in self._pending:
            by_dtype.setdefault(pending.low.dtype, []).append(pending)
        for group in by_dtype.values():
            on_device = torch.stack([bound for each in group for bound in (each.low, each.high)])
            numbers = on_device.tolist()
            for index, (node, _, _, is_real, bucket) in enumerate(group):
                bounds = (numbers[2 * index], numbers[2 * index + 1])
                if bucket is not None:
                    node.bounds_by_bucket[bucket] = bounds
                elif is_real:
                    node.real_bounds = bounds
                else:
                    node.minimum, node.maximum = bounds
        self._pending.clear()


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The same elements in memory order: a reduction would first copy a transposed tensor."""
    if tensor.is_contiguous():
        return tensor
    strides = tensor.stride()
    ordered = tensor.permute(sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True))
    return ordered if ordered.is_contiguous() else tensor
