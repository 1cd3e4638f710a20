"""Operations as they ran, in segments between unit boundaries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.measure.watch.op_kinds import FUSED_ATTENTION, GROUPED_PRODUCT
from precheck.measure.watch.reduce import MASK_SENTINEL
from precheck.measure.watch.source_line import path_on_python_path

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT, HIDDEN, OTHER = -1, -2, -3
"""Origins that are not operations of the segment: a parameter, hidden states, anything else."""


def match_key(module: str, op: str, ordinal: int) -> tuple[str, str, int]:
    """What matches an operation in another run: kernels of one operation have one name.

    >>> match_key("mlp.experts", "transformers.grouped_mm_fallback", 0)
    ('mlp.experts', 'grouped_mm', 0)
    """
    kernel = next((each for each in (FUSED_ATTENTION, GROUPED_PRODUCT) if each in op), op)
    return (module, kernel, ordinal)


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
    """Of a product that adds up in float16: the largest ``|x| @ |w|``."""
    overflowed_inside: bool = False
    """Its accumulator overflowed, and its exact result would not have."""
    minimum: float | None = None
    maximum: float | None = None
    is_all_real: bool = False
    """Every position of the output is a real token, or has none."""
    real_bounds: tuple[float, float] | None = None
    """The same at real tokens; None where the shape of the output does not tell which they are."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What matches the operation in another run."""
        return match_key(self.module, self.op, self.ordinal)

    @property
    def source(self) -> str:
        """``modeling_qwen2.py:155``."""
        return f"{PurePath(self.filename).name}:{self.line}"

    @property
    def source_file(self) -> str | None:
        """``transformers/models/qwen2/modeling_qwen2.py``."""
        return path_on_python_path(self.filename)

    @property
    def is_finite(self) -> bool:
        """Whether nothing but finite values was seen (also when the op was not reduced)."""
        return self.minimum is None or (
            math.isfinite(self.minimum) and math.isfinite(self.maximum or 0.0)
        )

    @property
    def abs_max(self) -> float | None:
        """Largest magnitude at real tokens.

        None where the op was not reduced, holds a mask or something that is not finite.
        """
        bounds = (self.minimum, self.maximum) if self.is_all_real else self.real_bounds
        low, high = bounds or (None, None)
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            return None
        return max(abs(low), abs(high)) if low > MASK_SENTINEL else None


@dataclass(slots=True, eq=False)
class Segment:
    """The operations between two unit boundaries of one run, in order."""

    nodes: list[OpNode] = field(default_factory=list)
    routes: list[Tensor] = field(default_factory=list)
    """Indices that ``topk`` chose, ``(tokens, k)`` int64: the routing of a mixture of experts."""
    scores: list[tuple[OpNode, Tensor, Tensor]] = field(default_factory=list)
    """Query and key of every fused attention call, ``(batch, heads, seq, head_dim)``."""
    _pending: list[tuple[OpNode, Tensor, Tensor, bool]] = field(default_factory=list)
    _ordinals: dict[tuple[str, str], int] = field(default_factory=dict)

    def ordinal(self, module: str, op: str) -> int:
        """How often ``op`` ran in ``module`` before, in this segment."""
        key = match_key(module, op, 0)[:2]
        count = self._ordinals.get(key, 0)
        self._ordinals[key] = count + 1
        return count

    def reduce_later(self, node: OpNode, output: Tensor, *, is_real: bool = False) -> None:
        """Reduces on the device, without waiting for the result."""
        low, high = torch.aminmax(_in_memory_order(output))
        self._pending.append((node, low, high, is_real))

    def fetch(self) -> None:
        """One host synchronisation a dtype for every operation since the last."""
        by_dtype: dict[torch.dtype, list[tuple[OpNode, Tensor, Tensor, bool]]] = {}
        for each in self._pending:
            by_dtype.setdefault(each[1].dtype, []).append(each)
        for group in by_dtype.values():
            values = torch.stack([bound for _, low, high, _ in group for bound in (low, high)])
            numbers = values.tolist()
            for position, (node, _, _, is_real) in enumerate(group):
                bounds = (numbers[2 * position], numbers[2 * position + 1])
                if is_real:
                    node.real_bounds = bounds
                else:
                    node.minimum, node.maximum = bounds
        self._pending.clear()


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The same elements as they lie in memory: a reduction would first copy a transposed one."""
    if tensor.is_contiguous():
        return tensor
    strides = tensor.stride()
    ordered = tensor.permute(sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True))
    return ordered if ordered.is_contiguous() else tensor
