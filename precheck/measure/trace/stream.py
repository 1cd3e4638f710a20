"""What a traced decoder layer adds to the residual stream, and where it compares queries and keys.

Both are told by the data flow. The *residual stream* comes from before the layer, is only added to,
and goes on behind it. *Scores* are a product with a row for each query and a column for each key:
both grow with the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from precheck.measure.watch.op_kinds import MOVES

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from precheck.measure.trace.flow import Flow, FlowOp, Value

_PRODUCTS = frozenset({"aten.bmm", "aten.matmul", "aten.baddbmm"})
_ADDS = frozenset({"aten.add", "aten.add_"})
_MULTIPLIES = frozenset({"aten.mul", "aten.mul_"})
_SCALINGS = frozenset({*_MULTIPLIES, "aten.div", "aten.div_"})
_CARRIES = frozenset({*MOVES, "aten._to_copy", "aten.dropout"})


class ScoreProduct(NamedTuple):
    """A product of queries and keys."""

    place: int
    """Of the operation in the flow."""
    scaling: float
    """What its result is multiplied by right after it; 1 where queries were scaled before."""


class Branch(NamedTuple):
    """An addition to the residual stream."""

    place: int
    """Of the operation in the flow."""
    added: Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracedLayer:
    """A decoder layer in the flow."""

    path: str
    scores: tuple[ScoreProduct, ...]
    stream: Value | None
    """The residual stream as the layer reads it; None if it adds to none."""
    branches: tuple[Branch, ...] = ()
    """What is added to it, in order."""
    carried: frozenset[Value] = frozenset()
    """The stream in the layer and behind it."""


@dataclass(slots=True)
class _Stream:
    """What comes from one tensor before the layer, with what was added to it."""

    branches: list[Branch] = field(default_factory=list)
    carried: set[Value] = field(default_factory=set)


def traced_layer(flow: Flow, path: str, *, grows: Mapping[Value, Collection[int]]) -> TracedLayer:
    """What a decoder layer does with its residual stream, and its attention scores.

    Args:
        flow: of a forward.
        path: of the layer.
        grows: of each tensor, the dimensions that are longer for a longer text.
    """
    own = [
        (place, op)
        for place, op in enumerate(flow.ops)
        if op.module == path or op.module.startswith(f"{path}.")
    ]
    scores = tuple(
        ScoreProduct(place, _scaling(op, own)) for place, op in own if _is_score(op, grows)
    )
    streams = _streams([place for place, _ in own], flow)
    last = own[-1][0] if own else 0
    read_later = {value for op in flow.ops[last + 1 :] for value in op.inputs}
    going_on = [
        (root, stream)
        for root, stream in streams.items()
        if stream.branches and not stream.carried.isdisjoint(read_later)
    ]
    if not going_on:
        return TracedLayer(path=path, scores=scores, stream=None)
    root, stream = max(going_on, key=lambda each: len(each[1].branches))
    return TracedLayer(
        path=path,
        scores=scores,
        stream=root,
        branches=tuple(stream.branches),
        carried=frozenset(stream.carried),
    )


def leading_to(
    flow: Flow, places: Iterable[int], *, unknown: Collection[str], ends: Collection[Value]
) -> list[int]:
    """The operations that some of the flow follow from, in order, and these themselves.

    What reads a parameter that is not known is left out: nothing is known of its result.

    Args:
        flow: of a forward.
        places: of the operations asked for; they are taken whatever they read.
        unknown: names of parameters and buffers that are not at hand.
        ends: tensors that are taken for unknown.
    """
    hidden = _of_unknown(flow, unknown)
    makers: dict[Value, list[int]] = {}
    for place, op in enumerate(flow.ops):
        for value in op.outputs:
            makers.setdefault(value, []).append(place)
    taken: set[int] = set()
    left = list(places)
    asked = set(left)
    while left:
        place = left.pop()
        op = flow.ops[place]
        if place in taken or (place not in asked and not hidden.isdisjoint(op.inputs)):
            continue
        taken.add(place)
        for value in op.inputs:
            if value.is_number and value not in ends:
                left += [maker for maker in makers.get(value, ()) if maker < place]
    return sorted(taken | set(_writers(flow, taken)))


def _of_unknown(flow: Flow, names: Collection[str]) -> set[Value]:
    """Parameters of these names, and what is nothing but one of them: a matrix, transposed."""
    hidden: set[Value] = set()
    for op in flow.ops:
        hidden.update(value for value in op.inputs if (value.parameter or value.buffer) in names)
        if (op.is_view or op.name in _CARRIES) and hidden.issuperset(op.inputs):
            hidden.update(op.outputs)
    return hidden


def _writers(flow: Flow, places: Collection[int]) -> Iterable[int]:
    """Operations that write into the memory of what others read."""
    storages = {value.storage for place in places for value in flow.ops[place].inputs}
    for place, op in enumerate(flow.ops):
        inputs = set(op.inputs)
        if any(value in inputs and value.storage in storages for value in op.outputs):
            yield place


def _is_score(op: FlowOp, grows: Mapping[Value, Collection[int]]) -> bool:
    if op.name not in _PRODUCTS:
        return False
    rank = len(op.outputs[0].shape)
    return {rank - 2, rank - 1} <= set(grows.get(op.outputs[0], ()))


def _scaling(product: FlowOp, layer: Iterable[tuple[int, FlowOp]]) -> float:
    """A number that scores are multiplied or divided by before anything else happens to them."""
    scores = set(product.outputs)
    for _, op in layer:
        if scores.isdisjoint(op.inputs):
            continue
        if op.is_view:
            scores.update(op.outputs)
            continue
        if op.name in _SCALINGS and len(op.inputs) == 1 and len(op.scalars) == 1:
            number = op.scalars[0]
            return number if op.name in _MULTIPLIES else 1 / number
        return 1.0
    return 1.0


def _streams(places: Iterable[int], flow: Flow) -> dict[Value, _Stream]:
    """Of each tensor from before the layer, what was added to it in the layer."""
    roots: dict[Value, Value | None] = {}
    streams: dict[Value, _Stream] = {}
    for place in places:
        op = flow.ops[place]
        for value in op.inputs:
            if value.is_number and value not in roots:
                is_fixed = value.parameter is not None or value.buffer is not None
                roots[value] = None if is_fixed else value
        root = _root(op, roots)
        for value in op.outputs:
            roots[value] = root
        if root is None:
            continue
        stream = streams.setdefault(root, _Stream())
        stream.carried.update(op.outputs)
        if op.name in _ADDS:
            stream.branches.append(Branch(place, _added(op, roots)))
    return streams


def _root(op: FlowOp, roots: Mapping[Value, Value | None]) -> Value | None:
    """The tensor from before the layer that the result is, with or without additions."""
    known = [roots[value] for value in op.inputs if value.is_number]
    if op.is_view or op.name in _CARRIES:
        return known[0] if len(known) == 1 else None
    if op.name not in _ADDS or len(known) != 2 or op.scalars:  # noqa: PLR2004  two tensors
        return None
    shapes = {value.shape for value in (*op.inputs, *op.outputs)}
    one_of_both = (known[0] is None) != (known[1] is None)
    return (known[0] or known[1]) if one_of_both and len(shapes) == 1 else None


def _added(op: FlowOp, roots: Mapping[Value, Value | None]) -> Value:
    first, second = op.inputs
    return second if roots[second] is None else first
