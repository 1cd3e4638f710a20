"""Rules of products: exponents add up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.cure.scales.sums import sum_of
from precheck.cure.scales.tensor_scale import ZEROS, ScaledRange, TensorScale, uniform_scale

if TYPE_CHECKING:
    from precheck.cure.scales.constraints import Constraints
    from precheck.cure.scales.forms import Form
    from precheck.cure.scales.op_context import OpContext


def matrix_product(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``a @ b``, and a bias that may be added."""
    constraints = context.constraints
    match context.op.name:
        case "aten.addmm" | "aten.baddbmm" | "aten.addbmm" | "aten._addmm_activation":
            bias, a, b = scales[:3]
            return sum_of([_product(a, b, constraints), bias], constraints)
        case "aten.convolution" | "aten.linear":
            a, b = scales[:2]
            product = uniform_scale(constraints.common_form(a) + constraints.common_form(b))
            return sum_of([product, *scales[2:3]], constraints)
        case _:
            return _product(scales[0], scales[1], constraints)


def multiply(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """Element by element with another tensor, or with a number."""
    return _elementwise(context, scales, 1.0)


def divide(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """A product with the inverse, unless the quotient is rounded."""
    if context.op.kwargs.get("rounding_mode") is not None:
        return context.constraints.require_unscaled(scales)
    return _elementwise(context, scales, -1.0)


def _product(a: TensorScale, b: TensorScale, constraints: Constraints) -> TensorScale:
    """``a @ b``: its ranges are those of ``b`` along the last dimension."""
    if a.is_zero or b.is_zero:
        return ZEROS
    left = constraints.common_form(a)
    if len(b.ranges) > 1 and b.dim != -1:
        return uniform_scale(left + constraints.common_form(b))
    return TensorScale(ranges=tuple(_column_range(part, left, b.axes) for part in b.ranges))


def _column_range(columns: ScaledRange, left: Form, axes: tuple[int, ...]) -> ScaledRange:
    """A range of the product; it begins where its columns begin in the parameter on the right.

    The columns of a transposed parameter lie along ``axes[-1]``, its dimension that is last now.
    """
    origin = columns.origin if axes else None
    if origin is not None:
        origin = replace(origin, dim=axes[-1])
    return replace(columns, form=left + columns.form, origin=origin)


def _elementwise(context: OpContext, scales: list[TensorScale], sign: float) -> TensorScale:
    """``a * b ** sign``; ``b`` may be a number."""
    constraints = context.constraints
    if any(scale.is_zero for scale in scales):
        return ZEROS
    tensor, *others = map(constraints.along_last, scales)
    if not others:
        return tensor.shifted([context.number_form.times(sign)] * len(tensor.ranges))
    (factor,) = others
    if sign > 0 and len(factor.ranges) > len(tensor.ranges):
        tensor, factor = factor, tensor
    forms = [part.form for part in factor.ranges]
    if len(forms) != len(tensor.ranges):
        forms = [constraints.common_form(factor)] * len(tensor.ranges)
    product = tensor.shifted([form.times(sign) for form in forms])
    ranges = tuple(replace(part, origin=None) for part in product.ranges)
    return replace(product, ranges=ranges, axes=())
