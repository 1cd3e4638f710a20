"""Matrix products that accumulate in float16, as some kernels do: where a partial sum overflows.

Hooks and watched operations see the result of a kernel, not its partial sums. No partial sum, in
whatever order, exceeds ``|x| @ |w|``: where that fits into float16, no kernel overflows. Where it
does not, the sum is accumulated in float16, ``CHUNK`` products at a time in the order of the
inputs, as a tensor core with a float16 accumulator does (``allow_fp16_accumulation``) and about as
exllama v2 does.

Assumptions. Products of a chunk are summed exactly and the accumulator is rounded after it.
Elsewhere the result is that of a float32 accumulator, rounded once: the smaller rounding errors of
float16 sums are not imitated, nor is another order.

**Source**: ``q_gemm_kernel_gptq.cuh`` in https://github.com/turboderp-org/exllamav2; "Full FP16
Accumulation in FP16 GEMMs" in https://docs.pytorch.org/docs/stable/notes/cuda.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from precheck.records.traces import PartialSums

if TYPE_CHECKING:
    from torch import Tensor
    from torch._ops import OpOverload

    from precheck.measure.watch.segment import OpNode

CHUNK = 16
"""Products that are summed before the accumulator is rounded: the depth of one instruction."""

_PRODUCTS = ("aten.mm", "aten.addmm")
_FLOAT16 = torch.finfo(torch.float16).max


class Float16Sums:
    """Computes the float16 products of one run."""

    def __init__(self) -> None:
        self.bound: float | None = None
        """Of the last product: the largest ``|x| @ |w|``."""
        self.overflowed_inside = False
        """Whether the last product overflowed although its exact result fits."""

    def applies_to(self, name: str, tensors: list[Tensor]) -> bool:
        """Whether an operation is such a product; forgets the last one."""
        self.bound, self.overflowed_inside = None, False
        return name in _PRODUCTS and tensors[0].dtype is torch.float16

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The product; infinite where its accumulator was."""
        tensors = (arg.float() for arg in args[:3] if isinstance(arg, torch.Tensor))
        *offset, left, right = tensors
        exact: Tensor = func(*offset, left, right, **kwargs)
        result = exact.half()
        bound = left.abs() @ right.abs()
        self.bound = float(bound.max()) if bound.numel() else 0.0
        if not self.bound > _FLOAT16:
            return result
        is_beyond = bound > _FLOAT16
        rows, columns = is_beyond.any(dim=1).nonzero()[:, 0], is_beyond.any(dim=0).nonzero()[:, 0]
        sums = _accumulated(left[rows], right[:, columns])
        if offset:
            sums = (sums.float() + offset[0].expand_as(exact)[rows][:, columns]).half()
        affected = (rows[:, None], columns[None, :])
        sums = torch.where(is_beyond[affected], sums, result[affected])
        self.overflowed_inside = bool((~sums.isfinite() & result[affected].isfinite()).any())
        result[affected] = sums
        return result


def _accumulated(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in a float16 accumulator, ``(rows, columns)`` float16."""
    total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float16, device=left.device)
    for start in range(0, left.shape[1], CHUNK):
        chunk = slice(start, start + CHUNK)
        total = (total.float() + left[:, chunk] @ right[chunk]).half()
    return total


@dataclass(slots=True, eq=False)
class SumsTotals:
    """The bounds of all products of a run together."""

    num_products: int = 0
    num_beyond: int = 0
    largest: float = 0.0
    module: str | None = None

    def add(self, node: OpNode) -> None:
        """Counts a product; other operations have no bound."""
        if node.sum_bound is None:
            return
        self.num_products += 1
        self.num_beyond += node.sum_bound > _FLOAT16
        if self.module is None or node.sum_bound > self.largest:
            self.largest, self.module = node.sum_bound, node.module

    def merge(self, other: SumsTotals) -> SumsTotals:
        """Both sets of batches together."""
        larger = other if other.module is not None and other.largest > self.largest else self
        return SumsTotals(
            num_products=self.num_products + other.num_products,
            num_beyond=self.num_beyond + other.num_beyond,
            largest=larger.largest,
            module=larger.module,
        )

    @property
    def record(self) -> PartialSums | None:
        """As the report has it; None for a run that did not accumulate in float16."""
        if self.module is None:
            return None
        return PartialSums(
            num_products=self.num_products,
            num_beyond_float16=self.num_beyond,
            largest_bound=self.largest,
            module=self.module,
        )
