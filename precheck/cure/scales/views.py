"""What views and cuts make of the lanes of a tensor."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precheck.cure.scales.flow import FlowOp, Value
    from precheck.cure.scales.tensor_scale import Ledger, Scale, ScaledRange

SPLITS = frozenset({"aten.split", "aten.split_with_sizes"})
"""They give several tensors, one after the other."""


def views(scale: Scale, base: Value, made: list[Value], ledger: Ledger) -> list[Scale]:
    """The scale of each view of a tensor."""
    if scale.is_weight:
        return [_of_weight(scale, base, made[0], ledger)] * len(made)
    if len(scale.lanes) == 1 and scale.lanes[0].owner is None:
        return [scale] * len(made)
    if ledger.op.name in {"aten.slice", *SPLITS}:
        return _cut(scale, base, made, ledger)
    # a reshape keeps the lanes where the dimension they lie along stays as it is
    if made[0].shape[scale.dim :] == base.shape[scale.dim :]:
        return [scale] * len(made)
    return [ledger.merged(scale)] * len(made)


def _of_weight(scale: Scale, base: Value, made: Value, ledger: Ledger) -> Scale:
    """A view of a parameter that keeps, turns or drops its dimensions."""
    order = _order(ledger.op, len(base.shape))
    if order is None:
        return scale if made.shape == base.shape else ledger.merged(scale)
    axes = tuple(scale.axes[each] for each in order)
    if len(scale.lanes) == 1:
        return replace(scale, axes=axes)
    if scale.axes[scale.dim] not in axes:
        return ledger.merged(scale)
    return replace(scale, axes=axes, dim=axes.index(scale.axes[scale.dim]) - len(axes))


def _order(op: FlowOp, rank: int) -> list[int] | None:
    """Which dimension of the tensor each of the view's is; None of a reshape."""
    order = list(range(rank))
    numbers = [int(each) for each in op.scalars]
    match op.name:
        case "aten.t":
            order.reverse()
        case "aten.transpose":
            one, other = (each % rank for each in numbers[:2])
            order[one], order[other] = other, one
        case "aten.permute":
            order = [each % rank for each in numbers[:rank]]
        case "aten.select":
            del order[numbers[0] % rank]
        case _:
            return None
    return order


def _cut(scale: Scale, base: Value, made: list[Value], ledger: Ledger) -> list[Scale]:
    """Parts of the lanes; a lane that is cut through asks for its parameter to be cut there."""
    rank = len(base.shape)
    along = next((dim for dim in range(rank) if made[0].shape[dim] != base.shape[dim]), None)
    if along is None or along - rank != scale.dim:
        return [scale] * len(made)
    size = base.shape[along]
    start = _start(ledger.op, size)
    if start is None:
        return [ledger.merged(scale)] * len(made)
    found: list[Scale] = []
    for each in made:
        stop = start + each.shape[along]
        found.append(_part(scale, (start, stop), size, ledger))
        start = stop
    return found


def _start(op: FlowOp, size: int) -> int | None:
    """Where the first part begins; None where places are left out in between."""
    if op.name != "aten.slice":
        return 0
    _, _, start, _, step = (*op.args, None, None, None, None)[:5]
    if step not in {None, 1}:
        return None
    return range(size)[start:].start


def _part(scale: Scale, wanted: tuple[int, int], size: int, ledger: Ledger) -> Scale:
    lanes: list[ScaledRange] = []
    position = 0
    for lane in scale.lanes:
        end = position + (lane.size or size)
        low, high = max(wanted[0], position), min(wanted[1], end)
        if low < high:
            lanes.append(
                _part_of_lane(lane, (low - position, high - position), end - position, ledger)
            )
        position = end
    return replace(scale, lanes=tuple(lanes) or scale.lanes)


def _part_of_lane(
    lane: ScaledRange, wanted: tuple[int, int], size: int, ledger: Ledger
) -> ScaledRange:
    owner = lane.owner
    low, high = wanted
    if owner is not None:
        for place in wanted:
            if 0 < place < size:
                ledger.ask_cut(owner, place)
        owner = replace(owner, start=owner.start + low)
    return replace(lane, size=high - low, owner=owner)
