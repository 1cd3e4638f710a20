"""Numbers that share a scale, side by side in the dimensions of one shape."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from precheck.facts.formats import Granularity, Numbers

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a tensor is cut up, and put together again.

    Args:
        shape: of the tensor.
        numbers: what it is stored as.

    A last group that is not full is filled with copies of its last number, which do not change its
    range; they are not among what comes back.
    """

    shape: tuple[int, ...]
    numbers: Numbers

    @property
    def _size(self) -> int:
        if self.numbers.group_size is None:
            raise ValueError(f"no group size: {self.numbers} (expected one)")
        return self.numbers.group_size

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimensions of ``grouped`` in which numbers share a scale."""
        if self.numbers.granularity is Granularity.TENSOR:
            return tuple(range(len(self.shape)))
        return (-3, -1) if self.numbers.granularity is Granularity.BLOCK else (-1,)

    def grouped(self, tensor: Tensor) -> Tensor:
        """The tensor with a dimension for groups; for blocks ``(..., rows, row, columns, column)``.

        A view where no group is filled up.
        """
        if self.numbers.granularity is Granularity.RUN:
            tensor = tensor.flatten()
        if self.numbers.granularity in {Granularity.GROUP, Granularity.RUN}:
            return _cut(_filled(tensor, -1, self._size), -1, self._size)
        if self.numbers.granularity is Granularity.BLOCK:
            filled = _filled(_filled(tensor, -1, self._size), -2, self._size)
            return _cut(_cut(filled, -1, self._size), -3, self._size)
        return tensor

    def restored(self, grouped: Tensor) -> Tensor:
        """The inverse of ``grouped``."""
        if self.numbers.granularity is Granularity.GROUP:
            return grouped.flatten(-2)[..., : self.shape[-1]]
        if self.numbers.granularity is Granularity.RUN:
            return grouped.flatten()[: math.prod(self.shape)].view(self.shape)
        if self.numbers.granularity is Granularity.BLOCK:
            joined = grouped.flatten(-2).flatten(-3, -2)
            return joined[..., : self.shape[-2], : self.shape[-1]]
        return grouped


def _cut(tensor: Tensor, dim: int, size: int) -> Tensor:
    shape = list(tensor.shape)
    shape[dim:] = [shape[dim] // size, size, *shape[len(shape) + dim + 1 :]]
    return tensor.reshape(shape)


def _filled(tensor: Tensor, dim: int, size: int) -> Tensor:
    missing = -tensor.shape[dim] % size
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor, tensor.narrow(dim, -1, 1).expand(shape)], dim=dim)
