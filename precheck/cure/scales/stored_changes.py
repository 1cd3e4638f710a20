"""From blocks of a parameter to blocks of the stored tensors that transformers makes it of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.rewriting import block_of
from precheck.cure.scales.blocks import uniform_blocks
from precheck.records.outcomes.fix import TensorChange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from precheck.checkpoint.weights import Weights
    from precheck.measure.models.conversion import Conversion


def first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a parameter the first that the model has for it; tied ones have two."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in everything}


def source_changes(
    conversion: Conversion,
    name: str,
    changes: Sequence[TensorChange],
    stored: Weights,
    model: nn.Module,
) -> dict[str, tuple[TensorChange, ...]]:
    """The changes of a parameter as changes of the tensors that it is made of.

    The conversion is run on numbers that count the stored elements, so that each element of the
    parameter says where it comes from.

    Args:
        conversion: makes the parameter.
        name: of the parameter.
        changes: of its blocks, which do not overlap.
        stored: the checkpoint's tensors.
        model: with the parameter; it may be without values.
    """
    shapes = [stored.shape(source) for source in conversion.sources]
    divides_last = any(extent.dim == -1 for change in changes for extent in change.block)
    numbers = None
    if not divides_last:
        # what is not divided along its last dimension need not have all of it
        thin = [(*shape[:-1], 1) if len(shape) > 1 else shape for shape in shapes]
        numbers = _converted(conversion, name, thin, model)
        if numbers.shape[:-1] == model.get_parameter(name).shape[:-1]:
            shapes = thin
        else:
            numbers = None
    if numbers is None:
        numbers = _converted(conversion, name, shapes, model)
    powers = torch.zeros(numbers.shape, dtype=torch.int16)
    for change in changes:
        block_of(powers, change.block).fill_(change.power)
    by_source = powers.new_zeros(sum(map(math.prod, shapes)))
    by_source[numbers.flatten().long()] = powers.flatten()
    parts = by_source.split([math.prod(shape) for shape in shapes])
    found = {
        source: tuple(
            TensorChange(power=power, block=block, shift=changes[0].shift)
            for power, block in uniform_blocks(part.reshape(shape), range(-len(shape), 0))
        )
        for source, part, shape in zip(conversion.sources, parts, shapes, strict=True)
    }
    return {source: several for source, several in found.items() if several}


def _converted(
    conversion: Conversion, name: str, shapes: Sequence[tuple[int, ...]], model: nn.Module
) -> Tensor:
    """The parameter, if the stored tensors have these shapes and hold the numbers of elements."""
    first = first_names(model)
    parameters = conversion.convert(_counted(shapes), model)
    return next(tensor for target, tensor in parameters.items() if first[target] == name)


def _counted(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Tensors whose elements are numbered one after the other."""
    ends = torch.tensor([math.prod(shape) for shape in shapes]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [
        torch.arange(start, end, dtype=torch.int32).reshape(shape)
        for start, end, shape in zip(starts, ends, shapes, strict=True)
    ]
