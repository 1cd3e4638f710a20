"""Rules of sums, and of whatever else puts tensors together: exponents have to be equal."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Reason
from precheck.cure.scales.op_context import is_scaled_constant
from precheck.cure.scales.tensor_scale import (
    CONSTANT,
    ZEROS,
    TensorScale,
    aligned,
    uniform_scale,
)

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
    """The scale of a sum; requires the terms to have the same scale, element by element."""
    terms = [scale for scale in scales if not scale.is_zero]
    if not terms:
        return ZEROS
    finest = max(terms, key=lambda scale: (scale.groups is not None, len(scale.forms)))
    for term in terms:
        if term is not finest:
            constraints.divide_like(term, finest)
            for first, second in aligned([finest, _as_grouped(term, finest, constraints)])[1]:
                constraints.require_equal(first, second)
    return replace(finest, is_weight=False)


def _as_grouped(term: TensorScale, finest: TensorScale, constraints: Constraints) -> TensorScale:
    """The term itself, unless its rows are sorted in another way."""
    is_other = term.groups is not None and term.groups is not finest.groups
    return constraints.merged(term) if is_other else term


def _plus_number(context: OpContext, scale: TensorScale) -> TensorScale:
    """The scale after a constant was added to every element.

    ``1 + w`` becomes a shifted weight; any other tensor has to be scaled as the constant is: not.
    """
    number = next((scalar for scalar in context.op.scalars if scalar), 0.0)
    if not is_scaled_constant(number):
        return scale
    if scale.is_zero:
        return CONSTANT
    if scale.is_weight and all(form.only_weight for form in scale.forms):
        # c - w is w - c with the other sign, and a sign is no scale
        shift = number if context.name == "aten.add" else -number
        return scale.mapped([form.shifted(shift) for form in scale.forms])
    is_epsilon = 0 < number <= LARGEST_EPSILON and context.is_before_root
    for form in scale.forms:
        if is_epsilon:
            context.constraints.require_epsilon(form - context.number_form, number)
        else:
            context.constraints.require_zero(form - context.number_form, Reason.CONSTANT)
    return replace(scale, is_weight=False)


def join(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """Tensors that are concatenated, or written into one another."""
    written = context.op.args[-1] if context.op.args else None
    writes_number = context.name in _WRITES_NUMBERS
    if writes_number and isinstance(written, int | float) and is_scaled_constant(written):
        scales = [*scales, CONSTANT]
    terms = [scale for scale in scales if not scale.is_zero]
    if not terms:
        return ZEROS
    first = context.constraints.common_form(terms[0])
    for scale in terms[1:]:
        context.constraints.require_equal(context.constraints.common_form(scale), first)
    return uniform_scale(first)


def select(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``where`` and ``masked_fill``: of two tensors, or of a tensor and a number."""
    if context.has_scaled_constant:
        scales = [*scales, CONSTANT]
    return sum_of(scales, context.constraints)


def clamp(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """Clipping at zero keeps any factor, at another constant none."""
    if len(scales) > 1:
        return join(context, scales)
    if context.has_scaled_constant:
        for form in scales[0].forms:
            context.constraints.require_zero(form - context.number_form, Reason.CLAMP)
    return replace(scales[0], is_weight=False)
