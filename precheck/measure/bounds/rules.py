"""A rule for each operation, by its name: what is known of its result before it is rounded.

An operation without a rule gives something of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds import attention, elementwise, functions, moves, norms, reductions
from precheck.measure.bounds.forms import Known, Shares
from precheck.measure.bounds.products import grouped_product, weight_product
from precheck.measure.watch.op_kinds import FUSED_ATTENTION, MOVES

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.bounds.step import Step

Rule = Callable[["Step"], Known | None]
"""What is known of a result before it is rounded; None where nothing is."""


_PAIRS = frozenset({"view_as_complex", "view_as_real"})
"""Views of two elements as one, or of one as two."""


def rule_of(step: Step) -> Rule | None:
    """The rule of an operation, if it has one."""
    name = step.op.name.removeprefix("aten.").removesuffix("_")
    if FUSED_ATTENTION in name:
        return attention.fused if step.place == 0 else None
    if name in _JOINS:
        return moves.joined
    if name in RULES:
        return RULES[name]
    if name in _PAIRS:
        return None
    is_move = step.op.is_view or step.op.name in MOVES or name in _COPIES
    return moves.viewed if is_move and len(step.known) == 1 else None


def _product(step: Step) -> Known | None:
    """``mm``, ``bmm``, ``matmul``, ``linear``, with or without something that is added."""
    first, second = step.args[:2]
    return _multiplied(step, first, second, None)


def _linear(step: Step) -> Known | None:
    first, second, *bias = step.args
    turned = second.moved(lambda part: part.T)
    return _multiplied(step, first, turned, bias[0] if bias else None)


def _added_product(step: Step) -> Known | None:
    """``addmm(c, a, b)`` and ``baddbmm``: ``beta * c + alpha * a @ b``."""
    added, first, second = step.args[:3]
    alpha, beta = step.number(4, "alpha", 1.0), step.number(3, "beta", 1.0)
    if (alpha, beta) == (1.0, 1.0) and added.numbers is not None and added.rank == 1:
        return _multiplied(step, first, second, added)
    product = _multiplied(step, first, second, None)
    if product is None or alpha is None or beta is None:
        return None
    rest = added.expanded(step.shape).bound * abs(beta) if beta else 0.0
    return Known(magnitudes=product.bound * abs(alpha) + rest)


def _multiplied(step: Step, first: Known, second: Known, bias: Known | None) -> Known | None:
    if bias is not None and bias.numbers is None:
        return None
    added = None if bias is None else bias.numbers
    if second.numbers is not None and second.rank == 2:  # noqa: PLR2004  a matrix
        return _weighted(step, first, second.numbers.T, added)
    if first.numbers is not None and first.rank == 2 and second.rank == 2:  # noqa: PLR2004
        turned = second.moved(lambda part: part.T)
        known = _weighted(step, turned, first.numbers, None)
        return known.moved(lambda part: part.T)
    if first.rank != second.rank or added is not None:
        return None
    return attention.batched_product(step, first, second)


def _experts(step: Step) -> Known | None:
    """``_grouped_mm(tokens, weights, offsets)``: each row by the weight of its expert."""
    tensor, weights = step.known[:2]
    if weights.numbers is None or (tensor.rank, weights.rank) != (2, 3):
        return None
    return grouped_product(
        tensor,
        weights.numbers,
        dtype=step.dtype,
        sums_in=step.sums_in,
        refinement=step.refinement,
    )


def _weighted(step: Step, tensor: Known, weight: Tensor, bias: Tensor | None) -> Known:
    return weight_product(
        tensor,
        weight,
        bias,
        dtype=step.dtype,
        sums_in=step.sums_in,
        refinement=step.refinement,
    )


def _cast(step: Step) -> Known | None:
    if not step.known:
        return _of_integers(step)
    known = functions.cast(step)
    if isinstance(known.form, Shares) and not step.is_exact_cast:
        shares = attention.cast_shares(step, known.form)
        return Known(magnitudes=known.bound, form=shares, is_nonnegative=True)
    return known


def _of_integers(step: Step) -> Known:
    """Truth values, or integers of any size."""
    if step.source_dtype is torch.bool:
        return step.bounded(1.0, is_nonnegative=True, is_binary=True)
    return step.bounded(float(torch.iinfo(step.source_dtype).max) + 1.0)


def _fused_norm(step: Step) -> Known | None:
    if step.place:
        return None
    return norms.fused_norm(step, is_centred="layer_norm" in step.op.name)


def _exponential(step: Step) -> Known:
    return Known(magnitudes=step.known[0].bound.exp(), is_nonnegative=True)


def _named(*entries: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in entries for name in names.split()}


RULES: dict[str, Rule] = _named(
    (elementwise.add, "add"),
    (elementwise.subtract, "sub"),
    (elementwise.reverse_subtract, "rsub"),
    (elementwise.multiply, "mul"),
    (elementwise.divide, "div"),
    (elementwise.power, "pow"),
    (elementwise.square_root, "sqrt"),
    (elementwise.inverse_root, "rsqrt"),
    (elementwise.reciprocal, "reciprocal"),
    (functions.no_larger, "silu gelu relu"),
    (functions.clamp, "clamp clamp_min clamp_max hardtanh"),
    (functions.at_most_one, "tanh sigmoid erf sign"),
    (functions.wave, "cos sin"),
    (functions.softplus, "softplus"),
    (functions.magnitude, "abs"),
    (functions.negate, "neg"),
    (functions.larger, "maximum minimum"),
    (functions.choose, "where masked_fill"),
    (_cast, "_to_copy"),
    (_exponential, "exp"),
    (_product, "mm bmm matmul"),
    (_linear, "linear"),
    (_added_product, "addmm baddbmm"),
    (_experts, "_grouped_mm"),
    (_fused_norm, "native_layer_norm _fused_rms_norm"),
    (attention.softmax, "_softmax _safe_softmax softmax"),
    (reductions.mean, "mean"),
    (reductions.add_up, "sum"),
    (reductions.vector_norm, "linalg_vector_norm"),
    (reductions.count, "histc"),
    (moves.looked_up, "embedding"),
    (moves.picked, "index index_select gather _unsafe_index"),
    (moves.sorted_out, "topk sort max min amax amin"),
)
"""By operation; those that write into a tensor are named without the ``_``."""

_JOINS = frozenset({"cat", "stack"})
_COPIES = frozenset(
    {"split", "split_with_sizes", "chunk", "unbind", "squeeze", "detach", "dropout", "repeat"}
)
_EXACT = frozenset(
    [
        "relu",
        "neg",
        "abs",
        "clamp",
        "clamp_min",
        "clamp_max",
        "hardtanh",
        "maximum",
        "minimum",
        "where",
        "masked_fill",
        "topk",
        "sort",
        "max",
        "min",
        "amax",
        "amin",
        "embedding",
        "index",
        "index_select",
        "gather",
        "_unsafe_index",
        "cat",
        "stack",
        "sign",
    ]
)
_BASIC = frozenset(
    [
        "add",
        "sub",
        "rsub",
        "mul",
        "div",
        "mm",
        "bmm",
        "matmul",
        "linear",
        "addmm",
        "baddbmm",
        "_grouped_mm",
        "_to_copy",
        "mean",
    ]
)


def num_roundings(step: Step) -> int:
    """How many units of roundoff the result may err by: more than one for functions."""
    name = step.op.name.removeprefix("aten.").removesuffix("_")
    if step.op.is_view or step.op.name in MOVES or name in _EXACT:
        return 0
    if name == "_to_copy":
        return 0 if step.known and step.is_exact_cast else 1
    return 1 if name in _BASIC else 4
