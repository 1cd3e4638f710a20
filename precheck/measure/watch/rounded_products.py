"""Matrix products of 16-bit runs on CPUs that cannot multiply 16-bit numbers.

Such a CPU takes several times longer in float16 than in float32. There the operands, which float32
holds exactly, are multiplied and summed in float32 and the result is rounded once, as a tensor core
does. The rounding belongs to the product, so an overflow in it is the product's. Fused attention
stays as it is: it is a hundredth of a forward, and its inner products are not the model's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from torch._ops import OpOverload


_PRODUCTS = frozenset(
    f"aten.{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "_grouped_mm")
)


class RoundedProducts:
    """Computes products of one dtype in float32; for one thread at a time.

    Memory of the float32 operands is reused: filling new memory would take longer than the product.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._scratch: list[Tensor] = []

    def applies_to(self, name: str, tensors: list[Tensor]) -> bool:
        """Whether an operation is such a product."""
        return name in _PRODUCTS and tensors[0].dtype is self._dtype

    def compute(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The product, rounded once."""
        wide = [
            self._widened(arg, position)
            if isinstance(arg, torch.Tensor) and arg.dtype is self._dtype
            else arg
            for position, arg in enumerate(args)
        ]
        product: Tensor = func(*wide, **kwargs)
        return product.to(self._dtype)

    def _widened(self, tensor: Tensor, position: int) -> Tensor:
        """The same numbers in float32 with the same strides, so that the same kernel runs."""
        if 0 in tensor.stride() or not tensor.numel():  # an expanded tensor cannot be written to
            return tensor.float()
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in pairs)
        while len(self._scratch) <= position:
            self._scratch.append(torch.empty(0))
        if self._scratch[position].numel() < extent:
            self._scratch[position] = torch.empty(extent)
        wide = self._scratch[position].as_strided(tensor.shape, tensor.stride())
        return wide.copy_(tensor)
