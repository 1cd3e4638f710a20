"""Which runs have their matrix products emulated, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.measure.watch.float16_sums import Float16Sums
from precheck.measure.watch.rounded_products import RoundedProducts
from precheck.records.precision import Accumulation, Arithmetic

if TYPE_CHECKING:
    from precheck.measure.models.skeleton import Skeleton
    from precheck.records.precision import Dtype


class ProductEmulation:
    """Makes what computes a run's matrix products where the device's own kernels do not.

    Runs that advance in lockstep share one of these: one thread computes at a time, so all runs of
    a dtype can use the same memory.
    """

    def __init__(self) -> None:
        self._rounded: dict[Dtype, RoundedProducts] = {}

    def products_of(self, skeleton: Skeleton) -> RoundedProducts | Float16Sums | None:
        """None where the device's own products are those of the configuration."""
        if skeleton.configuration.accumulation is Accumulation.FLOAT16:
            return Float16Sums()
        if skeleton.arithmetic is Arithmetic.NATIVE:
            return None
        if skeleton.dtype not in self._rounded:
            self._rounded[skeleton.dtype] = RoundedProducts(torch_dtype(skeleton.dtype))
        return self._rounded[skeleton.dtype]
