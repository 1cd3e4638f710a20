"""The elements that an unknown multiplies, as blocks: every combination of ranges of positions."""

from __future__ import annotations

from collections import defaultdict
from itertools import product
from typing import TYPE_CHECKING

import torch

from precheck.cure.scales.forms import Kind
from precheck.records.outcomes.fix import Extent, TensorChange

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from precheck.cure.scales.forms import Unknown

Block = tuple[Extent, ...]


def blocks(unknown: Unknown, partitions: Mapping[tuple[str, int], Tensor]) -> tuple[Block, ...]:
    """Blocks of a parameter that do not overlap; one of no extents is all of it.

    Args:
        unknown: of a weight.
        partitions: the class of each position, by parameter and dimension.
    """
    ranges = [extents(partitions[unknown.name, dim] == number, dim) for dim, number in unknown.part]
    return tuple(product(*ranges))


def parameter_changes(
    exponents: Mapping[Unknown, int], partitions: Mapping[tuple[str, int], Tensor]
) -> dict[str, tuple[TensorChange, ...]]:
    """What to multiply in each parameter; parts with one power are one block where they can be.

    Args:
        exponents: of weights and of settings.
        partitions: the class of each position, by parameter and dimension.
    """
    by_parameter: defaultdict[str, dict[Unknown, int]] = defaultdict(dict)
    for unknown, power in exponents.items():
        if unknown.kind is not Kind.SETTING:
            by_parameter[unknown.name][unknown] = power
    return {name: _changes(name, powers, partitions) for name, powers in by_parameter.items()}


def _changes(
    name: str, powers: Mapping[Unknown, int], partitions: Mapping[tuple[str, int], Tensor]
) -> tuple[TensorChange, ...]:
    """Of one parameter, which is multiplied as it is or after a constant was added to it."""
    dims = sorted(dim for parameter, dim in partitions if parameter == name)
    grid = torch.zeros([len(partitions[name, dim]) for dim in dims], dtype=torch.int16)
    for unknown, power in powers.items():
        is_part = torch.ones_like(grid, dtype=torch.bool)
        for axis, (dim, number) in enumerate(unknown.part):
            shape = [-1 if axis == other else 1 for other in range(len(dims))]
            is_part &= (partitions[name, dim] == number).reshape(shape)
        grid[is_part] = power
    one = next(iter(powers))
    shift = one.shift if one.kind is Kind.SHIFTED_WEIGHT else None
    return tuple(
        TensorChange(power=power, block=block, shift=shift)
        for power, block in uniform_blocks(grid, dims)
    )


def uniform_blocks(powers: Tensor, dims: Sequence[int]) -> list[tuple[int, Block]]:
    """Blocks that have one power each, without those of the power 0.

    Args:
        powers: of elements, or of positions along the dimensions that are divided.
        dims: which dimensions of a tensor they lie along, from the end.
    """
    ranges, picked = [], powers
    for axis, dim in enumerate(dims):
        if bool((powers == powers.narrow(axis, 0, 1)).all()):
            picked = picked.narrow(axis, 0, 1)
            continue
        kinds = torch.unique(powers, dim=axis, return_inverse=True)[1]
        runs = sorted(
            (extent for kind in torch.unique(kinds) for extent in extents(kinds == kind, dim)),
            key=lambda extent: extent.start,
        )
        ranges.append(runs)
        picked = picked.index_select(axis, torch.tensor([extent.start for extent in runs]))
    found = zip(picked.flatten().tolist(), product(*ranges), strict=True)
    return [(power, block) for power, block in found if power]


def extents(is_member: Tensor, dim: int) -> list[Extent]:
    """Neighbouring positions along a dimension that are true."""
    edges = torch.nn.functional.pad(is_member.int(), (1, 1)).diff()
    starts, stops = (edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten()
    return [
        Extent(dim=dim, start=start, stop=stop)
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]
