"""Which parts of a checkpoint are read where its weights are not: small tensors, and samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from precheck.checkpoint.faults.scales import (
    CACHE_SCALES,
    GLOBAL_SCALES,
    INPUT_SCALES,
    scales_of_packed,
)
from precheck.checkpoint.shards import Span
from precheck.checkpoint.torch_dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precheck.checkpoint.weights import Weights

MOST_ELEMENTS = 1 << 18
"""Of a small tensor: a bias as long as the largest vocabularies is one."""
SAMPLED_TENSORS, SAMPLED_BYTES = 32, 4096
"""Of the scales of blocks, that many tensors, and of each that many bytes from its start."""
SAMPLED_ROWS = 8
"""Of two tensors that should be one, that many rows are compared."""
_SCALES = (*GLOBAL_SCALES, *INPUT_SCALES, *CACHE_SCALES)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallParts:
    """The parts of a checkpoint that are read, by the names of the stored tensors."""

    whole: tuple[str, ...]
    """Tensors that are read from end to end: one dimension at most, not counting those of 1."""
    scales: frozenset[str] = frozenset()
    """Those of them that are scales."""
    sampled: dict[str, int] = field(default_factory=dict)
    """Scales of blocks: how many of their elements are read, from the first on."""

    def spans(self, stored: Weights) -> dict[str, Sequence[Span]]:
        """Where these bytes lie in each tensor."""
        dtypes = stored.stored_dtypes()
        whole = {name: math.prod(stored.stored_shape(name)) for name in self.whole}
        return {
            name: (Span(0, count * torch_dtype(dtypes[name]).itemsize),)
            for name, count in {**whole, **self.sampled}.items()
        }


def find_small_parts(stored: Weights) -> SmallParts:
    """The small tensors of a checkpoint, and a sample of its other scales, by headers alone."""
    dtypes = stored.stored_dtypes()
    scales = scales_of_packed(dtypes)
    whole, blocks = [], []
    for name, dtype in dtypes.items():
        is_scale = name in scales or name.endswith(_SCALES)
        if is_scale or torch_dtype(dtype).is_floating_point:
            if _is_small(stored.stored_shape(name)):
                whole.append(name)
            elif is_scale:
                blocks.append(name)
    return SmallParts(
        whole=tuple(whole),
        scales=frozenset(name for name in whole if name in scales or name.endswith(_SCALES)),
        sampled={name: _sampled_elements(stored, name, dtypes[name]) for name in _spread(blocks)},
    )


def sampled_rows(num_rows: int) -> tuple[int, ...]:
    """Rows of a matrix that are compared, the first and the last among them.

    >>> sampled_rows(3), sampled_rows(1000)[-2:]
    ((0, 1, 2), (856, 999))
    """
    return tuple(_evenly(num_rows, SAMPLED_ROWS))


def _is_small(shape: Sequence[int]) -> bool:
    return sum(size != 1 for size in shape) <= 1 and math.prod(shape) <= MOST_ELEMENTS


def _sampled_elements(stored: Weights, name: str, dtype: str) -> int:
    at_most = SAMPLED_BYTES // torch_dtype(dtype).itemsize
    return min(at_most, math.prod(stored.stored_shape(name)))


def _spread(names: Sequence[str]) -> Iterable[str]:
    return (names[place] for place in _evenly(len(names), SAMPLED_TENSORS))


def _evenly(number: int, at_most: int) -> Iterable[int]:
    """Places from 0 to ``number - 1``, as far from each other as possible."""
    if number <= at_most:
        return range(number)
    return (place * (number - 1) // (at_most - 1) for place in range(at_most))
