"""How large the vectors of a checkpoint are, by kind: norms and biases of all layers."""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.records.finding import module_pattern
from precheck.records.stored import VectorRange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_MOST_KINDS = 100
"""More are no pattern that a person would read."""


def vector_ranges(vectors: Mapping[str, Tensor]) -> tuple[VectorRange, ...]:
    """A row for each kind of vector, in the order in which the first of each is stored.

    Args:
        vectors: by name, of one dimension, in float32 on the CPU.

    >>> import torch
    >>> biases = {f"layers.{i}.k_proj.bias": torch.tensor([2.0**i]) for i in range(3)}
    >>> row, = vector_ranges(biases)
    >>> row.kind, row.num_tensors, row.abs_max, row.largest, row.median_abs_max
    ('layers.*.k_proj.bias', 3, 4.0, 'layers.2.k_proj.bias', 2.0)
    """
    kinds: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, values in vectors.items():
        abs_max = tensor_stats(values).abs_max
        if abs_max is not None:
            kinds[module_pattern(name)][name] = abs_max
    rows = (
        VectorRange(
            kind=kind,
            num_tensors=len(sizes),
            abs_max=max(sizes.values()),
            largest=max(sizes, key=sizes.__getitem__),
            median_abs_max=median(sizes.values()),
        )
        for kind, sizes in kinds.items()
    )
    return tuple(rows)[:_MOST_KINDS]
