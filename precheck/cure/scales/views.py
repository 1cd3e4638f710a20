"""The scales of views and slices: which ranges of a tensor they show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precheck.cure.scales.constraints import Constraints
    from precheck.cure.scales.flow import FlowOp, Value
    from precheck.cure.scales.tensor_scale import ScaledRange, TensorScale

SPLITS = frozenset({"aten.split", "aten.split_with_sizes"})
"""They return several tensors, one after the other."""


def view_scales(
    scale: TensorScale, base: Value, outputs: list[Value], constraints: Constraints
) -> list[TensorScale]:
    """The scale of each view of a tensor."""
    if scale.is_weight:
        return [_weight_view(scale, base, outputs[0], constraints)] * len(outputs)
    if len(scale.ranges) == 1 and scale.ranges[0].origin is None:
        return [scale] * len(outputs)
    if constraints.op.name in {"aten.slice", *SPLITS}:
        return _slices(scale, base, outputs, constraints)
    # a reshape keeps the ranges if it keeps the dimension they lie along, and those after it
    if outputs[0].shape[scale.dim :] == base.shape[scale.dim :]:
        return [scale] * len(outputs)
    return [constraints.merged(scale)] * len(outputs)


def _weight_view(
    scale: TensorScale, base: Value, view: Value, constraints: Constraints
) -> TensorScale:
    """A view of a parameter that keeps, permutes or drops its dimensions."""
    order = _dimension_order(constraints.op, len(base.shape))
    if order is None:
        return scale if view.shape == base.shape else constraints.merged(scale)
    axes = tuple(scale.axes[dim] for dim in order)
    if len(scale.ranges) == 1:
        return replace(scale, axes=axes)
    if scale.axes[scale.dim] not in axes:
        return constraints.merged(scale)
    return replace(scale, axes=axes, dim=axes.index(scale.axes[scale.dim]) - len(axes))


def _dimension_order(op: FlowOp, rank: int) -> list[int] | None:
    """For each dimension of the view the tensor's dimension that it is; None for a reshape."""
    order = list(range(rank))
    numbers = [int(number) for number in op.scalars]
    match op.name:
        case "aten.t":
            order.reverse()
        case "aten.transpose":
            first, second = (dim % rank for dim in numbers[:2])
            order[first], order[second] = second, first
        case "aten.permute":
            order = [dim % rank for dim in numbers[:rank]]
        case "aten.select":
            del order[numbers[0] % rank]
        case _:
            return None
    return order


def _slices(
    scale: TensorScale, base: Value, outputs: list[Value], constraints: Constraints
) -> list[TensorScale]:
    """The ranges in each slice; where one is divided, its parameter needs a boundary."""
    rank = len(base.shape)
    along = next((dim for dim in range(rank) if outputs[0].shape[dim] != base.shape[dim]), None)
    if along is None or along - rank != scale.dim:
        return [scale] * len(outputs)
    size = base.shape[along]
    start = _first_position(constraints.op, size)
    if start is None:
        return [constraints.merged(scale)] * len(outputs)
    slices: list[TensorScale] = []
    for output in outputs:
        stop = start + output.shape[along]
        slices.append(_slice(scale, (start, stop), size, constraints))
        start = stop
    return slices


def _first_position(op: FlowOp, size: int) -> int | None:
    """Where the first slice begins; None if it skips positions."""
    if op.name != "aten.slice":
        return 0
    _, _, start, _, step = (*op.args, None, None, None, None)[:5]
    if step not in {None, 1}:
        return None
    return range(size)[start:].start


def _slice(
    scale: TensorScale, bounds: tuple[int, int], size: int, constraints: Constraints
) -> TensorScale:
    ranges: list[ScaledRange] = []
    position = 0
    for part in scale.ranges:
        end = position + (part.size or size)
        low, high = max(bounds[0], position), min(bounds[1], end)
        if low < high:
            inside = (low - position, high - position)
            ranges.append(_range_slice(part, inside, end - position, constraints))
        position = end
    return replace(scale, ranges=tuple(ranges) or scale.ranges)


def _range_slice(
    part: ScaledRange, bounds: tuple[int, int], size: int, constraints: Constraints
) -> ScaledRange:
    origin = part.origin
    low, high = bounds
    if origin is not None:
        for boundary in bounds:
            if 0 < boundary < size:
                constraints.request_boundary(origin, boundary)
        origin = replace(origin, start=origin.start + low)
    return replace(part, size=high - low, origin=origin)
