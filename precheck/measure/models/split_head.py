"""A large head computes its scores for one part of the vocabulary at a time.

In float32 the head of a 7 B model is 2 GB. Whether its weights are in memory or read part by part,
the products are the same, and so are the bits. One product over the whole vocabulary would give
other roundings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

PART_BYTES = 1 << 27
"""A part's float32 weights: 128 MiB are far more than a product needs to run at full speed, and
little compared to a decoder layer."""


class SplitLinear(nn.Linear):
    """A linear layer that computes its output part by part."""

    read_part: Callable[[slice], Tensor] | None = None
    """Where the weight is not in memory: returns a slice of its rows, ``(rows, in_features)``,
    valid until the next call."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  nn.Linear's own name
        """``(..., in_features)`` to ``(..., out_features)``."""
        return torch.cat(list(self._products(input)), dim=-1)

    def _products(self, hidden_states: Tensor) -> Iterator[Tensor]:
        for rows in parts_of(self.out_features, self.in_features):
            weight = self.weight[rows] if self.read_part is None else self.read_part(rows)
            bias = self._parameters["bias"]  # None without one, which the stubs do not say
            yield functional.linear(hidden_states, weight, None if bias is None else bias[rows])


def parts_of(num_rows: int, row_elements: int) -> list[slice]:
    """Slices of rows that are ``PART_BYTES`` each in float32, the last one less."""
    step = max(1, PART_BYTES // (row_elements * torch.float32.itemsize))
    return [slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


def split_head(model: nn.Module, module: str) -> bool:
    """Makes a plain linear layer of several parts a ``SplitLinear``; returns whether it is one."""
    linear = model.get_submodule(module)
    if type(linear) is nn.Linear and len(parts_of(*linear.weight.shape)) > 1:
        linear.__class__ = SplitLinear
    return isinstance(linear, SplitLinear)
