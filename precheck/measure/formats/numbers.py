"""A tensor as it is read back from a number format, and what was lost on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.facts.formats import Element, Numbers, Rounding
from precheck.measure.formats.codebooks import nearest_in_codebook
from precheck.measure.formats.floats import FLOATS, nearest_float, widest_step
from precheck.measure.formats.grouping import Grouping
from precheck.measure.formats.integers import integer_range, nearest_integer
from precheck.measure.formats.rotations import rotated, width_of
from precheck.measure.formats.scales import Scaling, scaling_of

if TYPE_CHECKING:
    from torch import Tensor

_HALF = 0.55
"""Half a step, and the rounding of a scale: 7.5 in units of a scale in bfloat16 may be 7.52."""


def as_stored(tensor: Tensor, numbers: Numbers, *, calibrated_amax: float | None = None) -> Tensor:
    """The tensor stored in a format and read back.

    It is computed in float32 and rounded once to the dtype of the tensor. NaN stays NaN. Inf
    becomes the largest number where the format saturates and has no scales; else it spoils its
    group. A slice comes out as it does in the whole tensor, unless that has one scale for all:
    experts that are stacked, and have one each, are to be stored one by one.

    Args:
        tensor: a cache ``(batch, kv_heads, seq, head_dim)``, weights ``(..., out, in)``, or
            activations ``(..., in)``, in float16, bfloat16 or float32.
        numbers: how it is stored.
        calibrated_amax: the largest magnitude that a scale of the whole tensor is made for: what
            calibration saw, or 448 times a checkpoint's ``k_scale``. None: that of this tensor.
            Formats without such a scale take no notice.
    """
    if not tensor.numel():  # it has no largest number
        return tensor.clone()
    writing = _Writing.of(tensor, numbers, calibrated_amax=calibrated_amax)
    return writing.read_back(writing.rounded()).to(tensor.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The two ways to lose accuracy: a better scale cures the first, not the second."""

    clipped_share: float
    """Of all elements: those beyond the largest number by more than half a step."""
    rounding: float
    """Of the elements that are not clipped: root mean square of the error over that of the values;
    0.0 where they are all zero."""


def losses(tensor: Tensor, numbers: Numbers, *, calibrated_amax: float | None = None) -> Losses:
    """What storing the tensor loses, by clipping and by rounding.

    Where a format rotates vectors, both are told of the rotated ones.

    Args:
        tensor: as for ``as_stored``, finite, with at least one element.
        numbers: how it is stored.
        calibrated_amax: as for ``as_stored``.
    """
    writing = _Writing.of(tensor, numbers, calibrated_amax=calibrated_amax)
    lowest, highest = edges(writing.numbers)
    is_clipped = (writing.scaled < lowest) | (writing.scaled > highest)
    exact = writing.unscaled(writing.scaled.clone()).double().masked_fill_(is_clipped, 0.0)
    stored = writing.unscaled(writing.rounded()).double()
    error = stored.masked_fill_(is_clipped, 0.0).sub_(exact).norm().item()
    size = exact.norm().item()
    return Losses(
        clipped_share=is_clipped.sum().item() / tensor.numel(),
        rounding=error / size if size else 0.0,
    )


def edges(numbers: Numbers) -> tuple[float, float]:
    """Beyond them, in units of the element, a number is over half a step from any that is stored.

    >>> from precheck.facts.formats import cache_format
    >>> edges(cache_format("fp8_e4m3").keys)
    (-464.0, 464.0)
    """
    if numbers.element is Element.NF4:
        return (-math.inf, math.inf)  # the largest magnitude is stored
    if numbers.element in FLOATS:
        highest = numbers.element.max + widest_step(numbers.element) / 2
        return (-highest, highest)
    least, most = integer_range(numbers)
    return (least - _HALF, most + _HALF)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writing:
    """A tensor ready to be rounded."""

    numbers: Numbers
    """How rows of this length are stored."""
    scaled: Tensor
    """In float32, in units of the element; without a scale, maybe the tensor itself."""
    scaling: Scaling | None
    grouping: Grouping
    width: int | None
    """Of the rotation."""

    @classmethod
    def of(cls, tensor: Tensor, numbers: Numbers, *, calibrated_amax: float | None) -> _Writing:
        """Rotated, cut into groups and scaled."""
        numbers = numbers.in_rows_of(tensor.shape[-1])
        width = width_of(numbers.rotation, tensor.shape[-1])
        values = tensor.float() if width is None else rotated(tensor.float(), width)
        grouping = Grouping(tuple(tensor.shape), numbers)
        grouped = grouping.grouped(values)
        scaling = scaling_of(grouped, numbers, grouping.dims, calibrated_amax=calibrated_amax)
        if scaling is not None:
            grouped = scaling.scaled(grouped)
        return cls(numbers=numbers, scaled=grouped, scaling=scaling, grouping=grouping, width=width)

    def rounded(self) -> Tensor:
        """The nearest stored numbers, in units of the element: a new tensor."""
        if self.numbers.element is Element.NF4:
            return nearest_in_codebook(self.scaled)
        if self.numbers.element in FLOATS:
            return nearest_float(
                self.scaled,
                self.numbers.element,
                saturates=self.numbers.saturates,
                toward_zero=self.numbers.rounding is Rounding.TOWARD_ZERO,
            )
        return nearest_integer(self.scaled, self.numbers)

    def unscaled(self, rounded: Tensor) -> Tensor:
        """In units of the tensor; overwrites its argument."""
        return rounded if self.scaling is None else self.scaling.unscaled(rounded)

    def read_back(self, rounded: Tensor) -> Tensor:
        """In float32, in the shape of the tensor; overwrites its argument."""
        restored = self.grouping.restored(self.unscaled(rounded))
        return restored if self.width is None else rotated(restored, self.width)
