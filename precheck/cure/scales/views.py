"""The scales of views and copies: the operation is run on the numbers of the lanes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from precheck.cure.scales.constraints import MOST_CLASSES, MOST_EXPERTS
from precheck.cure.scales.tensor_scale import (
    ZEROS,
    TensorScale,
    compressed,
    laned,
    of_rank,
)
from precheck.measure.trace.flow import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.cure.scales.constraints import Constraints
    from precheck.cure.scales.tensor_scale import Origin
    from precheck.measure.trace.flow import FlowOp

SPLITS = frozenset({"aten.split", "aten.split_with_sizes", "aten.unbind", "aten.chunk"})
"""They return several tensors, each a part of the first."""

COPIES = frozenset(
    {
        "aten.clone",
        "aten.constant_pad_nd",
        "aten.contiguous",
        "aten.expand_copy",
        "aten.flip",
        "aten.repeat",
        "aten.repeat_interleave",
        "aten._reshape_copy",
        "aten.roll",
        "aten.unfold_copy",
    }
)
"""Their elements are the first tensor's, elsewhere, and zeros."""

_EXPERTS = -3
"""Dimension of a merged parameter along which experts lie."""

_INDEXED = {"aten.embedding": 0, "aten.index_select": None, "aten.gather": None}
"""Along which dimension elements are looked up; None: an argument says it."""


def view_scales(
    scale: TensorScale, base: Value, outputs: list[Value], constraints: Constraints
) -> list[TensorScale]:
    """The scale of each tensor that shows or copies elements of another one."""
    if not scale.has_places:
        return [scale] * len(outputs)
    if scale.groups is not None and not _keeps_rows(base, outputs):
        scale = constraints.ungrouped(scale, rank=len(base.shape))
    try:
        lanes = _run(constraints.op, base, scale.lanes)
        positions = [_run(constraints.op, base, origin.positions) for origin in scale.origins]
    except RuntimeError:  # the operation does not take integers: ``view_as_complex``
        return [constraints.merged(scale)] * len(outputs)
    views = []
    for number, output in enumerate(outputs):
        shown = laned(lanes[number], scale.forms)
        origins = tuple(
            replace(origin, positions=of_view[number])
            for origin, of_view in zip(scale.origins, positions, strict=True)
        )
        if math.prod(output.shape) < math.prod(base.shape):
            for origin, whole in zip(origins, scale.origins, strict=True):
                _divide_where_parted(whole, origin, constraints)
        view = replace(shown, origins=origins, groups=scale.groups, is_zero=scale.is_zero)
        view = view.without_idle_groups(len(output.shape))
        views.append(replace(view, is_weight=scale.is_weight))
    return views


def looked_up(scale: TensorScale, base: Value, constraints: Constraints) -> TensorScale:
    """Elements picked by indices; those that may be picked for one another need one scale."""
    op, rank = constraints.op, len(base.shape)
    dims = _indexed_dims(op, rank)
    constants = [value.constant for value in op.inputs if not value.is_number]
    if op.name == "aten.index" and all(constant is not None for constant in constants):
        return view_scales(scale, base, list(op.outputs), constraints)[0]
    if dims is None:
        return constraints.merged(scale)
    if scale.groups is not None and -rank in dims:
        scale = constraints.ungrouped(scale, rank=rank)
    merged = constraints.merged_along(scale, dims, rank=rank)
    if not merged.has_places or merged.groups is not None:
        return replace(merged, origins=())
    (lanes,) = _run(op, base, merged.lanes)
    origins = tuple(
        replace(origin, positions=_run(op, base, origin.positions)[0]) for origin in merged.origins
    )
    return replace(laned(lanes, merged.forms), origins=origins, is_zero=merged.is_zero)


def joined(
    scales: list[TensorScale], values: list[Value], constraints: Constraints
) -> TensorScale | None:
    """The scale of concatenated tensors; None if that cannot be followed."""
    op = constraints.op
    parts = op.args[0] if op.args and isinstance(op.args[0], list | tuple) else ()
    if len(parts) != len(scales) or any(scale.groups is not None for scale in scales):
        return None
    scales = [
        scale if math.prod(value.shape) else ZEROS  # an empty cache
        for scale, value in zip(scales, values, strict=True)
    ]
    first = next((scale for scale in scales if not scale.is_zero), None)
    if first is None:
        return ZEROS
    forms, lanes = [first.forms[0]], []
    for scale, value in zip(scales, values, strict=True):
        offset = 0 if scale.is_zero else len(forms)  # zeros have any scale: that of the first
        forms += [] if scale.is_zero else list(scale.forms)
        numbers = torch.zeros_like(scale.lanes) if scale.is_zero else scale.lanes + offset
        lanes.append(of_rank(numbers, len(value.shape)).expand(value.shape))
    return laned(op.func(lanes, *op.args[1:], **op.kwargs), forms)


def _keeps_rows(base: Value, outputs: list[Value]) -> bool:
    return all(output.shape[:1] == base.shape[:1] for output in outputs)


def _run(op: FlowOp, base: Value, numbers: Tensor) -> list[Tensor]:
    """What the operation makes of numbers in place of the first tensor's elements.

    Indices that are not known are zero.
    """
    rank = len(base.shape)
    if numbers.dim() > rank and numbers.shape[0] > 1:
        each = [_run(op, base, one) for one in numbers]
        return [
            torch.stack(torch.broadcast_tensors(*several)) for several in zip(*each, strict=True)
        ]
    full = of_rank(numbers, rank).expand(base.shape)

    def stand_in(leaf: Any) -> Any:
        if not isinstance(leaf, Value):
            return leaf
        if leaf is base:
            return full
        if leaf.constant is not None:
            return leaf.constant
        return torch.zeros(leaf.shape, dtype=leaf.dtype)

    result = op.func(*_filled(op.args, stand_in), **_filled(op.kwargs, stand_in))
    return [compressed(part) for part in ([result] if torch.is_tensor(result) else result)]


def _filled(tree: Any, stand_in: Callable[[Any], Any]) -> Any:
    """An operation's arguments with something else in the place of each tensor."""
    if isinstance(tree, dict):
        return {key: _filled(member, stand_in) for key, member in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_filled(member, stand_in) for member in tree)
    return stand_in(tree)


def _divide_where_parted(whole: Origin, part: Origin, constraints: Constraints) -> None:
    """A parameter is divided where a view shows only some of what comes from it."""
    before, after = torch.unique(whole.positions), torch.unique(part.positions)
    if 0 < len(after) < len(before):
        kinds = torch.isin(before, after).long()
        most = MOST_EXPERTS if whole.dim == _EXPERTS else MOST_CLASSES
        constraints.divide(replace(whole, positions=before), kinds, most=most)


def _indexed_dims(op: FlowOp, rank: int) -> list[int] | None:
    """Dimensions, from the end, along which indices pick; None if they pick in another way."""
    if op.name == "aten.index":
        indices = op.args[1]
        if any(isinstance(index, Value) and index.dtype is torch.bool for index in indices):
            return None
        return [dim - rank for dim, index in enumerate(indices) if index is not None]
    if op.name not in _INDEXED:
        return None
    dim = _INDEXED[op.name]
    return [(int(op.args[1]) if dim is None else dim) % rank - rank]
