"""Rules of products: exponents add up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.cure.scales.constraints import MOST_EXPERTS
from precheck.cure.scales.sums import sum_of
from precheck.cure.scales.tensor_scale import (
    ZEROS,
    TensorScale,
    aligned,
    compressed,
    laned,
    of_rank,
    uniform_scale,
    united_origins,
)
from precheck.measure.watch.op_kinds import GROUPED_PRODUCT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from precheck.cure.scales.constraints import Constraints
    from precheck.cure.scales.forms import Form
    from precheck.cure.scales.op_context import OpContext
    from precheck.cure.scales.tensor_scale import Origin
    from precheck.measure.trace.flow import Value


def matrix_product(
    context: OpContext, scales: list[TensorScale], inputs: Sequence[Value]
) -> TensorScale:
    """``a @ b``, and a bias that may be added."""
    constraints = context.constraints
    match context.op.name:
        case "aten.addmm" | "aten.baddbmm" | "aten.addbmm" | "aten._addmm_activation":
            bias, a, b = scales[:3]
            return sum_of([contraction(a, b, inputs[1:3], constraints), bias], constraints)
        case "aten.convolution":
            return sum_of([_convolution(context, scales, inputs), *scales[2:3]], constraints)
        case "aten.linear" | "aten.mv" | "aten.dot":
            product = uniform_scale(sum_of_forms(scales[:2], constraints))
            return sum_of([product, *scales[2:3]], constraints)
        case name if GROUPED_PRODUCT in name:
            return _grouped(context, scales, inputs)
        case _:
            return contraction(scales[0], scales[1], inputs, constraints)


def multiply(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """Element by element with another tensor, or with a number."""
    return _elementwise(context, scales, 1.0)


def divide(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """A product with the inverse, unless the quotient is rounded."""
    if context.op.kwargs.get("rounding_mode") is not None:
        return context.constraints.require_unscaled(scales)
    return _elementwise(context, scales, -1.0)


def contraction(
    a: TensorScale, b: TensorScale, values: Sequence[Value], constraints: Constraints
) -> TensorScale:
    """``a @ b``: products that are summed need one scale.

    Args:
        a: of ``(..., rows, inner)``.
        b: of ``(..., inner, columns)``.
        values: both tensors.
        constraints: where requirements go.
    """
    if a.is_zero or b.is_zero:
        return ZEROS
    left, right = (max(len(value.shape), 2) for value in values[:2])
    a = constraints.ungrouped(a, rank=left)
    b = constraints.ungrouped(b, rank=right)
    return _contracted(a, b, constraints)


def sum_of_forms(scales: list[TensorScale], constraints: Constraints) -> Form:
    """The form of a product of tensors that have to have one each."""
    first, second = map(constraints.common_form, scales)
    return first + second


def _contracted(a: TensorScale, b: TensorScale, constraints: Constraints) -> TensorScale:
    """The scale of ``a @ b``; both have lanes that are broadcast along leading dimensions."""
    origins = (*_kept(a.origins, dim=-1), *_kept(b.origins, dim=-2))
    if a.is_uniform and b.is_uniform:
        return replace(uniform_scale(a.forms[0] + b.forms[0]), origins=origins)
    of_a, of_b = (of_rank(scale.lanes, max(scale.lanes.dim(), 2)) for scale in (a, b))
    _divide_inner(a, of_b, constraints, dim=-1)
    _divide_inner(b, of_a, constraints, dim=-2)
    of_a, of_b = _distinct_inner(of_a, of_b)
    # each of shape (..., rows, inner, columns)
    rows = TensorScale(forms=a.forms, lanes=of_a.unsqueeze(-1))
    columns = TensorScale(forms=b.forms, lanes=of_b.unsqueeze(-3))
    lanes, pairs = aligned([rows, columns])
    forms = [first + second for first, second in pairs]
    lanes = of_rank(lanes, max(of_a.dim(), of_b.dim()) + 1)
    first = lanes.narrow(-2, 0, 1)
    for code in torch.unique(first * len(forms) + lanes).tolist():
        constraints.require_equal(forms[code // len(forms)], forms[code % len(forms)])
    return replace(laned(first.squeeze(-2), forms), origins=origins)


def _distinct_inner(of_a: Tensor, of_b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with one position for all inner ones that are alike."""
    size = max(of_a.shape[-1], of_b.shape[-2])
    if size == 1:
        return of_a, of_b
    along_a = of_a.movedim(-1, 0).flatten(1).expand(size, -1)
    along_b = of_b.movedim(-2, 0).flatten(1).expand(size, -1)
    kinds = torch.unique(torch.cat([along_a, along_b], 1), dim=0, return_inverse=True)[1]
    firsts = torch.unique(kinds)
    picked = torch.stack([(kinds == kind).nonzero()[0, 0] for kind in firsts])
    return (
        of_a.index_select(-1, picked) if of_a.shape[-1] > 1 else of_a,
        of_b.index_select(-2, picked) if of_b.shape[-2] > 1 else of_b,
    )


def _divide_inner(scale: TensorScale, other: Tensor, constraints: Constraints, *, dim: int) -> None:
    """What is summed over is divided in the parameter as it is in the other factor."""
    inner = other.movedim(-1 if dim == -2 else -2, 0)  # noqa: PLR2004  the other one's
    if inner.shape[0] == 1:
        return
    kinds = torch.unique(inner.flatten(1), dim=0, return_inverse=True)[1]
    for origin in scale.origins:
        positions = of_rank(origin.positions, max(origin.positions.dim(), 2))
        if positions.shape[dim] > 1:
            along = kinds if dim == -1 else kinds.unsqueeze(-1)
            constraints.divide(replace(origin, positions=positions), along)


def _kept(origins: tuple[Origin, ...], *, dim: int) -> tuple[Origin, ...]:
    """Origins of what does not vary along the inner dimension."""
    return tuple(
        origin
        for origin in origins
        if of_rank(origin.positions, max(origin.positions.dim(), 2)).shape[dim] == 1
    )


def _grouped(context: OpContext, scales: list[TensorScale], inputs: Sequence[Value]) -> TensorScale:
    """Rows ``(rows, inner)`` sorted by expert, each times the matrix of its own.

    The matrices are ``(experts, inner, columns)``.
    """
    constraints = context.constraints
    rows, matrices = scales[:2]
    if [len(value.shape) for value in inputs[:2]] != [2, 3]:
        return uniform_scale(sum_of_forms(scales[:2], constraints))
    offsets = next(value for value in context.op.inputs if not value.is_number)
    for origin in matrices.origins:
        if of_rank(origin.positions, 3).shape[0] > 1:
            constraints.divide(origin, origin.positions, most=MOST_EXPERTS)
    if rows.groups is not offsets:
        rows = constraints.ungrouped(rows, rank=2)
    product = _contracted(constraints.merged_along(rows, [-2], rank=2), matrices, constraints)
    origins = tuple(
        origin for origin in product.origins if of_rank(origin.positions, 3).shape[0] == 1
    )
    return replace(product, origins=origins, groups=offsets).without_idle_groups(2)


def _convolution(
    context: OpContext, scales: list[TensorScale], inputs: Sequence[Value]
) -> TensorScale:
    """A convolution; one that mixes no channels multiplies each by a weight of its own."""
    constraints = context.constraints
    tensor, weight = scales[:2]
    shape, weight_shape = (value.shape for value in inputs[:2])
    is_channelwise = weight_shape[1] == 1 and weight_shape[0] == shape[1]
    if not is_channelwise or tensor.is_zero:
        return uniform_scale(sum_of_forms(scales[:2], constraints))
    positions = range(2 - len(shape), 0)
    tensor = constraints.merged_along(tensor, positions, rank=len(shape))
    weight = constraints.merged_along(weight, positions, rank=len(weight_shape))
    by_channel = _channels_second(weight, rank=len(shape))
    constraints.divide_like(by_channel, tensor)
    lanes, pairs = aligned([tensor, by_channel])
    product = laned(lanes, [first + second for first, second in pairs])
    return replace(product, origins=united_origins(tensor, by_channel))


def _channels_second(weight: TensorScale, *, rank: int) -> TensorScale:
    """The scale of a weight ``(channels, 1, ...)`` as that of ``(1, channels, ...)``."""

    def swapped(tensor: Tensor) -> Tensor:
        return of_rank(tensor, rank).transpose(0, 1)

    origins = tuple(
        replace(origin, positions=swapped(origin.positions)) for origin in weight.origins
    )
    return replace(weight, lanes=swapped(weight.lanes), origins=origins)


def _elementwise(context: OpContext, scales: list[TensorScale], sign: float) -> TensorScale:
    """``a * b ** sign``; ``b`` may be a number."""
    constraints = context.constraints
    if any(scale.is_zero for scale in scales):
        return ZEROS
    if len(scales) == 1:
        number_form = context.number_form.times(sign)
        return scales[0].mapped([form + number_form for form in scales[0].forms])
    first, second = scales
    groups = first.groups or second.groups
    if first.groups is not None and second.groups not in {None, first.groups}:
        second, groups = constraints.merged(second), first.groups
    if second.is_weight:
        constraints.divide_like(second, first)
    if first.is_weight:
        constraints.divide_like(first, second)
    lanes, pairs = aligned([first, second])
    product = laned(compressed(lanes), [form + other.times(sign) for form, other in pairs])
    return replace(
        product,
        origins=united_origins(first, second),
        groups=None if product.is_uniform else groups,
    )
