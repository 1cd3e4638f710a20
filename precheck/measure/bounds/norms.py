"""Norms, found by their data flow: what is multiplied by the inverse root of its mean of squares.

``y = x / sqrt(mean(x^2) + epsilon)`` has ``|y| <= sqrt(d)`` for every input: the statistics are
followed from the square to the inverse root, with the rounding of each step. What underflows in
the squares is covered by the epsilon. Where the squares overflow, the inverse root is 0, and so
is ``y``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.forms import Image, Known, Rows, Statistic
from precheck.measure.bounds.rounding import OUTWARD, gamma, half_subnormal, unit_roundoff

if TYPE_CHECKING:
    from precheck.measure.bounds.step import Step


def squared(step: Step, tensor: Known) -> Statistic:
    """``x ** 2``, a step towards a norm."""
    return Statistic(of=tensor.identity, lost=half_subnormal(step.dtype))


def reduced(step: Step, statistic: Statistic, *, is_mean: bool, num_elements: int) -> Statistic:
    """The mean or the sum of squares along some dimensions."""
    # of every square, of the sum and of its division
    kept = 1.0 - gamma(num_elements + 3, step.sums_in) - 3 * unit_roundoff(step.dtype)
    radius = math.sqrt((num_elements if is_mean else 1) / kept) if kept > 0 else math.inf
    lost = statistic.lost * (1 if is_mean else num_elements) + half_subnormal(step.dtype)
    return replace(statistic, num_elements=num_elements, radius=radius, lost=lost)


def with_epsilon(step: Step, statistic: Statistic, epsilon: float) -> Statistic:
    """The mean of squares plus a positive number, or the larger of both."""
    held = float(torch.tensor(epsilon, dtype=step.dtype)) * (1 - unit_roundoff(step.dtype))
    return replace(
        statistic,
        epsilon=held,
        lost=statistic.lost + half_subnormal(step.dtype),
        radius=statistic.radius * (1 + unit_roundoff(step.dtype)),
    )


def rooted(step: Step, statistic: Statistic, power: float) -> Statistic:
    """The root, or the inverse root."""
    return replace(
        statistic,
        power=power * (1 if statistic.power > 0 else -1),
        radius=statistic.radius * (1 + 4 * unit_roundoff(step.dtype)),
    )


def cast(step: Step, statistic: Statistic) -> Statistic:
    """In another dtype."""
    is_small = statistic.power == 2.0  # noqa: PLR2004  a mean of squares may underflow
    return replace(
        statistic,
        radius=statistic.radius * (1 + unit_roundoff(step.dtype)),
        lost=statistic.lost + (half_subnormal(step.dtype) if is_small else 0.0),
    )


def normalised(step: Step, tensor: Known, statistic: Statistic, shape: tuple[int, ...]) -> Known:
    """``x`` times the inverse root of its own mean of squares: ``|y| <= sqrt(d)``.

    Args:
        step: the multiplication, or the division by the root.
        tensor: ``x``.
        statistic: its inverse root, or its root.
        shape: of the statistic.
    """
    # sqrt(m - lost + epsilon) >= sqrt(m) only if the epsilon covers what was lost
    radius = statistic.radius if statistic.epsilon > statistic.lost else math.inf
    return _image(step, [dim for dim, size in enumerate(shape) if size == 1], radius, tensor.shape)


def _image(step: Step, dims: list[int], radius: float, shape: tuple[int, ...]) -> Known:
    """The elements of a vector for each position: those along ``dims`` belong together."""
    kept = [size for dim, size in enumerate(shape) if dim not in dims]
    size = math.prod(shape[dim] for dim in dims)
    order = [dim for dim in range(len(shape)) if dim not in dims] + dims
    back = [order.index(dim) for dim in range(len(shape))]
    inner = torch.arange(size).reshape([shape[dim] for dim in dims])
    index = inner.expand(*kept, *inner.shape).permute(back)
    outer = torch.arange(math.prod(kept)).reshape(*kept, *[1] * len(dims))
    token = outer.expand(*kept, *inner.shape).permute(back)
    rounding = unit_roundoff(step.dtype)
    lost = half_subnormal(step.dtype) * math.sqrt(size)
    rows = Rows(size=size, radius=(radius * (1 + 2 * rounding) + lost) * OUTWARD)
    zeros = torch.zeros((), dtype=torch.float64).expand(shape)
    image = Image(rows=rows, index=index, token=token, scale=zeros + 1.0, offset=zeros, error=zeros)
    return Known(magnitudes=image.bound, form=image)


def fused_norm(step: Step, *, is_centred: bool) -> Known:
    """``native_layer_norm`` and ``_fused_rms_norm`` of ``(x, shape, weight, bias, epsilon)``.

    The kernels compute in float32 and round once; its epsilon covers what underflows there.
    """
    tensor, *affine = step.known
    lanes = step.args[1]
    dims = list(range(len(tensor.shape) - len(lanes), len(tensor.shape)))
    size = math.prod(lanes)
    kept = 1.0 - gamma(size + 4, step.sums_in)
    radius = (
        math.sqrt(size / kept) * (1 + 8 * unit_roundoff(step.sums_in)) if kept > 0 else math.inf
    )
    known = _image(step, dims, radius, tensor.shape)
    image = known.form
    assert isinstance(image, Image)  # noqa: S101  just made
    image = replace(image, rows=replace(image.rows, is_centred=is_centred))
    parameters = [one.numbers for one in affine if one.numbers is not None]
    if len(parameters) != len(affine):
        return step.unknown()
    if parameters:
        image = image.times(parameters[0].double().expand(step.shape))
    if len(parameters) > 1:
        image = replace(image, offset=parameters[1].double().expand(step.shape))
    # products and sums in float32, before the result is rounded
    image = replace(image, error=4 * unit_roundoff(step.sums_in) * image.bound)
    return Known(magnitudes=image.bound, form=image)
