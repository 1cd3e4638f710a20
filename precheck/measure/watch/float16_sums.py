"""Matrix products that add up in float16, as some kernels do: what can overflow in them, and does.

Hooks and watched operations see the result of a kernel, not its partial sums. Two questions are
asked instead. Can it overflow at all? No partial sum, in whatever order, exceeds ``|x| @ |w|``:
where that is within float16, no kernel can. Does it, where that is larger? There the sum is taken
in float16, ``CHUNK`` products at a time in the order of the inputs, as a tensor core with a float16
accumulator does (``allow_fp16_accumulation``) and about as exllama v2 does.

Assumptions. Products of a chunk are added up exactly and the accumulator is rounded after it.
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
"""Products that are added up before the accumulator is rounded: the depth of one instruction."""

_PRODUCTS = ("aten.mm", "aten.addmm")
_FLOAT16 = torch.finfo(torch.float16).max


class Float16Sums:
    """Computes the float16 products of one run."""

    def __init__(self) -> None:
        self.bound: float | None = None
        """Of the last product: the largest ``|x| @ |w|``."""
        self.is_inside = False
        """Whether the last product overflowed although its exact result fits."""

    def takes(self, name: str, tensors: list[Tensor]) -> bool:
        """Whether an operation is such a product."""
        self.bound, self.is_inside = None, False
        return name in _PRODUCTS and tensors[0].dtype is torch.float16

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The product; infinite where its accumulator was."""
        *offset, left, right = (each.float() for each in args[:3] if isinstance(each, torch.Tensor))
        exact: Tensor = func(*offset, left, right, **kwargs)
        result = exact.half()
        bound = left.abs() @ right.abs()
        self.bound = float(bound.max()) if bound.numel() else 0.0
        if not self.bound > _FLOAT16:
            return result
        beyond = bound > _FLOAT16
        rows, columns = beyond.any(dim=1).nonzero()[:, 0], beyond.any(dim=0).nonzero()[:, 0]
        sums = _added_up(left[rows], right[:, columns])
        if offset:
            sums = (sums.float() + offset[0].expand_as(exact)[rows][:, columns]).half()
        place = (rows[:, None], columns[None, :])
        sums = torch.where(beyond[place], sums, result[place])
        self.is_inside = bool((~sums.isfinite() & result[place].isfinite()).any())
        result[place] = sums
        return result


def _added_up(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right`` in a float16 accumulator, ``(rows, columns)`` float16."""
    total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float16, device=left.device)
    for start in range(0, left.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        total = (total.float() + left[:, part] @ right[part]).half()
    return total


@dataclass(slots=True, eq=False)
class SumsTotals:
    """What all products of a run say together."""

    num_products: int = 0
    num_beyond: int = 0
    largest: float = 0.0
    module: str | None = None

    def add(self, node: OpNode) -> None:
        """Takes a product; other operations have no bound."""
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
        """As the report has it; None of a run that did not look."""
        if self.module is None:
            return None
        return PartialSums(
            num_products=self.num_products,
            num_beyond_float16=self.num_beyond,
            largest_bound=self.largest,
            module=self.module,
        )
