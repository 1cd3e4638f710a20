"""A tensor as it is read back from a number format, and what was lost on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.formats.floats import FLOATS, nearest_float, widest_step
from precheck.measure.formats.grouping import Grouping
from precheck.measure.formats.integers import nearest_integer
from precheck.measure.formats.scales import scaling_of

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.facts.formats import Numbers


def as_stored(tensor: Tensor, numbers: Numbers) -> Tensor:
    """The tensor stored in a format and read back.

    It is computed in float32 and rounded once to the dtype of the tensor. NaN stays NaN. Inf
    becomes the largest number where the format saturates and has no scales; else it spoils its
    group.

    Args:
        tensor: a cache ``(batch, kv_heads, seq, head_dim)``, weights ``(..., out, in)``, or
            activations ``(..., in)``, in float16, bfloat16 or float32.
        numbers: how it is stored.
    """
    grouping = Grouping(tuple(tensor.shape), numbers)
    grouped = grouping.grouped(tensor.float())
    scaling = scaling_of(grouped, numbers, grouping.dims)
    if scaling is None:
        stored = _nearest(grouped, numbers)
    else:
        scaled = scaling.scaled(grouped, is_reciprocal=numbers.is_reciprocal)
        stored = scaling.unscaled(_nearest(scaled, numbers))
    return grouping.restored(stored).to(tensor.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The two ways to lose accuracy: a better scale cures the first, not the second."""

    clipped_share: float
    """Of all elements: those beyond the largest number by more than half a step."""
    rounding: float
    """Of the elements that are not clipped: root mean square of the error over that of the values;
    0.0 where they are all zero."""


def losses(tensor: Tensor, numbers: Numbers) -> Losses:
    """What storing the tensor loses, by clipping and by rounding.

    Args:
        tensor: as for ``as_stored``, with at least one element.
        numbers: how it is stored.
    """
    grouping = Grouping(tuple(tensor.shape), numbers)
    grouped = grouping.grouped(tensor.float())
    scaling = scaling_of(grouped, numbers, grouping.dims)
    scaled = (
        grouped if scaling is None else scaling.scaled(grouped, is_reciprocal=numbers.is_reciprocal)
    )
    is_clipped = grouping.restored((scaled > edge(numbers)) | (scaled < -edge(numbers)))
    kept = tensor.double().masked_fill_(is_clipped, 0.0)
    error = as_stored(tensor, numbers).double().masked_fill_(is_clipped, 0.0).sub_(kept)
    size = kept.norm().item()
    return Losses(
        clipped_share=is_clipped.sum().item() / tensor.numel(),
        rounding=error.norm().item() / size if size else 0.0,
    )


def edge(numbers: Numbers) -> float:
    """Beyond it, in units of the element, a number is farther than half a step from any stored one.

    >>> from precheck.facts.formats import cache_format
    >>> edge(cache_format("fp8_e4m3").keys)
    464.0
    """
    if not numbers.is_symmetric:
        return math.inf  # lowest and highest are stored
    step = widest_step(numbers.element) if numbers.element in FLOATS else 1.0
    return numbers.element.max + step / 2


def _nearest(scaled: Tensor, numbers: Numbers) -> Tensor:
    if numbers.element in FLOATS:
        return nearest_float(scaled, numbers.element, saturates=numbers.saturates)
    return nearest_integer(scaled, numbers)
