"""How large the results of operations became, as a whole and part by part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_NOTHING = 1.001
"""A variance of less than a thousandth of its epsilon is that of a token without hidden states."""

OpKey = tuple[str, str, int]
"""Module, operation, and how often it ran in that module before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be measured besides the largest magnitudes."""

    shapes: Mapping[OpKey, tuple[int, ...]] = field(default_factory=dict)
    """Of the peaks by element, by operation: the result's with size 1 for dimensions that do not
    matter. With one more in front it is that of experts."""
    epsilons: Mapping[OpKey, float] = field(default_factory=dict)
    """Of operations that add one to a variance, or norm."""


@dataclass(slots=True)
class Share:
    """What an epsilon is of the variances with it."""

    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """Over tokens."""
        return self.total / max(1, self.count)

    def add(self, sums: Tensor, epsilon: float) -> None:
        """Adds tokens, by their variance plus epsilon; those that are zero have nothing to norm."""
        sums = sums[sums > _NOTHING * epsilon]
        self.total += float((epsilon / sums).sum())
        self.count += sums.numel()


@dataclass(frozen=True, slots=True, eq=False)
class Peaks:
    """The largest magnitude of each operation's result.

    >>> peaks = Peaks({("mlp", "aten.mm", 0): 8.0}, {("mlp", "aten.mm", 0): torch.tensor([8.0, 1])})
    >>> peaks.of(("mlp", "aten.mm", 0), torch.tensor([False, True]))
    1.0
    >>> peaks.of(("mlp", "aten.mm", 1))
    0.0
    """

    largest: dict[OpKey, float] = field(default_factory=dict)
    by_element: dict[OpKey, Tensor] = field(default_factory=dict)
    """The same along some dimensions of the result, with size 1 along the others."""
    shares: dict[OpKey, Share] = field(default_factory=dict)
    """Of operations that add an epsilon to a variance, or norm."""

    def of(self, key: OpKey, elements: Tensor | None = None) -> float:
        """The peak of an operation, or of some elements of its result; 0 if it has none.

        Args:
            key: the operation.
            elements: bool, of the shape that the peaks by element have; None: all.
        """
        largest, each = self.largest.get(key, 0.0), self.by_element.get(key)
        if elements is None or each is None or each.shape != elements.shape:
            return largest
        return min(largest, float(each[elements].max()))


def reduced_to(shape: tuple[int, ...], output: Tensor, mask: Tensor | None) -> Tensor | None:
    """Largest magnitudes along the dimensions in which ``shape`` is not 1; None if it differs.

    Args:
        shape: as long as the output's, with size 1 for dimensions that are reduced.
        output: of an operation.
        mask: real tokens, broadcast to the output; None: all.
    """
    if len(shape) != output.dim() or any(
        kept not in {1, size} for kept, size in zip(shape, output.shape, strict=True)
    ):
        return None
    sizes = output.abs()
    if mask is not None:
        sizes = sizes.where(mask, 0.0)
    dims = [dim for dim, kept in enumerate(shape) if kept == 1]
    return sizes.amax(dim=dims, keepdim=True) if dims else sizes


def reduced_by_group(shape: tuple[int, ...], output: Tensor, ends: Tensor) -> Tensor | None:
    """Largest magnitudes of rows that are sorted by expert, as ``(experts, 1, columns)``.

    Args:
        shape: of the result; its last size may be 1.
        output: ``(rows, columns)``.
        ends: where the rows of each expert end, ``(experts,)``.
    """
    is_matrix = output.dim() == 2 and shape[1:-1] == (1,) and shape[0] == len(ends)  # noqa: PLR2004
    if not is_matrix or shape[-1] not in {1, output.shape[1]}:
        return None
    sizes = output.abs() if shape[-1] > 1 else output.abs().amax(dim=-1, keepdim=True)
    rows = torch.arange(len(sizes), device=output.device)
    experts = torch.bucketize(rows, ends.to(output.device), right=True)
    # rows behind the last end belong to no expert of this device
    groups = sizes.new_zeros(len(ends) + 1, sizes.shape[1])
    groups.scatter_reduce_(0, experts.unsqueeze(1).expand_as(sizes), sizes, "amax")
    return groups[:-1].unsqueeze(1)
