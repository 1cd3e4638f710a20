"""Rules of sums, and of whatever else puts tensors together: exponents have to be equal."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Form, Kind, Reason
from precheck.cure.scales.op_context import is_scaled_constant
from precheck.cure.scales.tensor_scale import CONSTANT, ZEROS, TensorScale, uniform_scale

if TYPE_CHECKING:
    from precheck.cure.scales.constraints import Constraints
    from precheck.cure.scales.op_context import OpContext

LARGEST_EPSILON = 1e-2
"""Constants up to here that are added before a root or a division are epsilons: 1e-12 to 1e-3 are
used."""

_WRITES_NUMBERS = frozenset({"aten.scatter", "aten.index_fill"})
"""Their last argument may be a number that is written into the tensor."""


def add(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """Two tensors, or a tensor and a number."""
    if len(scales) > 1:
        return sum_of(scales[:2], context.constraints)
    return _plus_number(context, scales[0])


def sum_of(scales: list[TensorScale], constraints: Constraints) -> TensorScale:
    """The scale of a sum; requires the terms to have the same scale, range by range."""
    terms = [constraints.along_last(scale) for scale in scales if not scale.is_zero]
    if not terms:
        return ZEROS
    finest = max(terms, key=lambda scale: len(scale.ranges))
    for term in terms:
        if term is not finest:
            _require_equal(finest, term, constraints)
    return replace(finest, axes=())


def _require_equal(fine: TensorScale, other: TensorScale, constraints: Constraints) -> None:
    if len(other.ranges) == len(fine.ranges):
        for part, other_part in zip(fine.ranges, other.ranges, strict=True):
            constraints.require_equal(part.form, other_part.form)
        return
    origin = other.ranges[0].origin if len(other.ranges) == 1 else None
    if origin is not None and other.is_weight:  # a bias is divided as what it is added to
        for boundary in list(accumulate(part.size for part in fine.ranges))[:-1]:
            constraints.request_boundary(origin, boundary)
    form = constraints.common_form(other)
    for part in fine.ranges:
        constraints.require_equal(part.form, form)


def _plus_number(context: OpContext, scale: TensorScale) -> TensorScale:
    """The scale after a constant was added to every element.

    ``1 + w`` becomes a shifted weight; any other tensor has to be scaled as the constant is: not.
    """
    number = next((scalar for scalar in context.op.scalars if scalar), 0.0)
    if not is_scaled_constant(number):
        return scale
    if scale.is_zero:
        return CONSTANT
    weight = scale.only_weight
    if weight is not None:
        # c - w is w - c with the other sign, and a sign is no scale
        shift = number if context.name == "aten.add" else -number
        shifted = replace(weight, kind=Kind.SHIFTED_WEIGHT, shift=shift)
        return replace(scale, ranges=(replace(scale.ranges[0], form=Form.of(shifted)),))
    is_epsilon = 0 < number <= LARGEST_EPSILON and context.is_before_root
    reason = Reason.EPSILON if is_epsilon else Reason.CONSTANT
    form = context.constraints.common_form(scale)
    context.constraints.require_zero(form - context.number_form, reason)
    return scale


def join(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """Tensors that are concatenated, or written into one another."""
    written = context.op.args[-1] if context.op.args else None
    writes_number = context.name in _WRITES_NUMBERS
    if writes_number and isinstance(written, int | float) and is_scaled_constant(written):
        scales = [*scales, CONSTANT]
    joined = [scale for scale in scales if not scale.is_zero]
    if not joined:
        return ZEROS
    first = context.constraints.common_form(joined[0])
    for scale in joined[1:]:
        context.constraints.require_equal(context.constraints.common_form(scale), first)
    return uniform_scale(first)


def select(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``where`` and ``masked_fill``: of two tensors, or of a tensor and a number."""
    if context.has_scaled_constant:
        return join(context, [*scales, CONSTANT])
    return join(context, scales) if len(scales) > 1 else scales[0]


def clamp(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """Clipping at zero keeps any factor, at another constant none."""
    if len(scales) > 1:
        return join(context, scales)
    if context.has_scaled_constant:
        form = context.constraints.common_form(scales[0])
        context.constraints.require_zero(form - context.number_form, Reason.CLAMP)
    return scales[0]
