"""The scale of each operation's result, and what the operation requires of its inputs' scales.

``RULES`` names the operations that pass a factor on. Products are in ``products.py``, sums in
``sums.py``, views in ``views.py``. An operation without a rule must not be given anything scaled:
what is not known never counts as exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Reason
from precheck.cure.scales.op_context import OpContext, is_scaled_constant
from precheck.cure.scales.products import contraction, divide, matrix_product, multiply
from precheck.cure.scales.sums import add, clamp, join, select, sum_of
from precheck.cure.scales.tensor_scale import CONSTANT, ZEROS, TensorScale, of_rank
from precheck.cure.scales.views import COPIES, SPLITS, joined, looked_up, view_scales
from precheck.measure.watch.op_kinds import (
    ALLOCATIONS,
    FUSED_ATTENTION,
    GROUPED_PRODUCT,
    MOVES,
    PRODUCTS,
)

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.trace.flow import Value

Rule = Callable[[OpContext, "list[TensorScale]"], TensorScale]
"""From the scales of an operation's inputs to that of its result."""

_FILLS = frozenset({"aten.full", "aten.new_full", "aten.full_like", "aten.scalar_tensor"})
_JOINS = frozenset({"aten.cat", "aten.stack"})
_LOOK_UPS = frozenset(
    f"aten.{name}"
    for name in ("embedding", "index", "index_select", "gather", "_unsafe_index", "masked_select")
)
_COMPARISONS = frozenset(f"aten.{name}" for name in ("gt", "ge", "lt", "le", "eq", "ne"))


def result_scales(
    context: OpContext, scales: list[TensorScale], inputs: list[Value], outputs: list[Value]
) -> list[TensorScale]:
    """The scale of each tensor that the operation returns.

    Args:
        context: the operation.
        scales: of the inputs.
        inputs: the tensors of numbers that it reads.
        outputs: the tensors of numbers that it returns.
    """
    name = context.op.name
    if FUSED_ATTENTION in name:
        return _attention(context, scales, inputs, len(outputs))
    if scales and (context.op.is_view or name in SPLITS or name in COPIES):
        return view_scales(scales[0], inputs[0], outputs, context.constraints)
    return [_result(context, scales, inputs)] * len(outputs)


def compare(context: OpContext, scales: list[TensorScale], outputs: list[Value]) -> None:
    """Numbers that become indices or truth values: a factor keeps their order and their sign."""
    constraints = context.constraints
    forms = [constraints.common_form(scale) for scale in scales if not scale.is_zero]
    for form in forms[1:]:
        constraints.require_equal(form, forms[0])
    is_cast = context.op.name == "aten._to_copy" and not str(outputs[0].dtype).endswith("bool")
    is_threshold = context.op.name in _COMPARISONS and context.has_scaled_constant
    if forms and (is_cast or is_threshold):
        constraints.require_zero(forms[0], Reason.NOT_LINEAR if is_cast else Reason.CLAMP)


def _result(context: OpContext, scales: list[TensorScale], inputs: list[Value]) -> TensorScale:
    name, constraints = context.op.name, context.constraints
    scale: TensorScale | None = None
    if not scales:
        scale = _created(context)
    elif name in PRODUCTS or GROUPED_PRODUCT in name:
        scale = matrix_product(context, scales, inputs)
    elif name in _REDUCTIONS:
        scale = _reduced(context, scales[0], inputs[0]).raised(_REDUCTIONS[name])
    elif name in _LOOK_UPS:
        scale = looked_up(scales[0], inputs[0], constraints)
    elif name in _JOINS:
        scale = joined(scales, inputs, constraints)
    if scale is None:
        default = join if name in MOVES else _not_homogeneous
        scale = RULES.get(context.name, default)(context, scales)
    return scale


def _not_homogeneous(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    return context.constraints.require_unscaled(scales)


def _created(context: OpContext) -> TensorScale:
    """A tensor that is made of no other one: zeros, or constants."""
    name = context.op.name
    is_zero_fill = name in _FILLS and not is_scaled_constant((0.0, *context.op.scalars)[-1])
    return ZEROS if name in ALLOCATIONS or "zeros" in name or is_zero_fill else CONSTANT


def _attention(
    context: OpContext, scales: list[TensorScale], inputs: list[Value], num_outputs: int
) -> list[TensorScale]:
    """Scores go through a softmax; the result is a mean of values."""
    constraints = context.constraints
    query, key, value, *others = scales
    scores = constraints.common_form(query) + constraints.common_form(key) + context.number_form
    constraints.require_zero(scores, Reason.NOT_LINEAR)
    constraints.require_unscaled(others)
    mean = contraction(CONSTANT, value, inputs[1:3], constraints)
    return [mean, *[CONSTANT] * (num_outputs - 1)]


def cast(_: OpContext, scales: list[TensorScale]) -> TensorScale:
    """The same numbers in another dtype."""
    return scales[0]


def homogeneous(_: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``f(c * x) = c * f(x)`` for every positive ``c``, element by element."""
    return replace(scales[0], is_weight=False)


def ordered(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``f(c * x) = c * f(x)``, where elements are permuted or summed."""
    return context.constraints.merged(scales[0])


def _reduced(context: OpContext, scale: TensorScale, tensor: Value) -> TensorScale:
    """``f(c * x) = c * f(x)``, over the dimensions that an argument names, or over all."""
    rank, constraints = len(tensor.shape), context.constraints
    args = (*context.op.args[1:], context.op.kwargs.get("dim"))
    dims = next((arg for arg in args if isinstance(arg, list | tuple)), None)
    if not dims or not scale.has_places:
        return constraints.merged(scale)
    reduced = [dim % rank - rank for dim in dims]
    scale = constraints.ungrouped(scale, rank=rank)
    merged = constraints.merged_along(scale, reduced, rank=rank)
    if len(context.op.outputs[0].shape) == rank:
        return merged

    def squeezed(numbers: Tensor) -> Tensor:
        numbers = of_rank(numbers, rank)
        for dim in sorted(reduced):
            numbers = numbers.squeeze(dim + (rank - numbers.dim()))
        return numbers

    origins = tuple(
        replace(origin, positions=squeezed(origin.positions)) for origin in merged.origins
    )
    return replace(merged, lanes=squeezed(merged.lanes), origins=origins)


def power(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``x ** n``; ``n ** x`` is not homogeneous."""
    exponent = context.op.args[-1] if context.op.args else None
    if len(scales) > 1 or not isinstance(exponent, int | float):
        return context.constraints.require_unscaled(scales)
    return scales[0].raised(exponent)


def square_root(_: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``sqrt(x)``."""
    return scales[0].raised(0.5)


def inverse_root(_: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``1 / sqrt(x)``."""
    return scales[0].raised(-0.5)


def reciprocal(_: OpContext, scales: list[TensorScale]) -> TensorScale:
    """``1 / x``."""
    return scales[0].raised(-1.0)


def normalise(context: OpContext, scales: list[TensorScale]) -> TensorScale:
    """A fused norm of ``(x, weight, bias)``: its epsilon has to be scaled like ``x ** 2``."""
    hidden, *parameters = scales
    constraints = context.constraints
    variance_form = constraints.common_form(hidden).times(2.0)
    epsilon = next((number for number in reversed(context.op.scalars) if number), 0.0)
    constraints.require_epsilon(variance_form - context.number_form, epsilon)
    return sum_of(parameters, constraints) if parameters else CONSTANT


def _rules(*entries: tuple[Rule, str]) -> dict[str, Rule]:
    return {f"aten.{name}": rule for rule, names in entries for name in names.split()}


RULES = _rules(
    (add, "add sub rsub"),
    (multiply, "mul"),
    (divide, "div"),
    (power, "pow"),
    (square_root, "sqrt"),
    (inverse_root, "rsqrt"),
    (reciprocal, "reciprocal"),
    (normalise, "native_layer_norm _fused_rms_norm"),
    (clamp, "clamp clamp_min clamp_max hardtanh"),
    (select, "where masked_fill"),
    (join, "maximum minimum copy index_put index_add scatter scatter_add index_fill"),
    (join, "masked_scatter"),
    (cast, "_to_copy"),
    (homogeneous, "relu neg abs leaky_relu tril triu"),
    (ordered, "cumsum sort topk max min"),
    (ordered, "avg_pool1d avg_pool2d adaptive_avg_pool1d _adaptive_avg_pool2d"),
    (ordered, "upsample_nearest2d upsample_bilinear2d _upsample_bilinear2d_aa upsample_bicubic2d"),
)
"""By operation; those that write into a tensor are named without the ``_``."""

_REDUCTIONS = {
    "aten.var": 2.0,
    **{f"aten.{n}": 1.0 for n in ("mean", "sum", "amax", "amin", "std", "norm")},
    "aten.linalg_vector_norm": 1.0,
}
"""Operations over several elements, and the power of the factor that they pass on."""
