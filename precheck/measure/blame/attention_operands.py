"""The queries, keys and values of a segment, found by the data flow and never by names.

Idea. Raw scores are a product of two activations that reaches a softmax, queries first; values are
what the softmax is multiplied by; fused attention reads all three. Behind views and copies of each
is the operation that computed it, whose largest magnitude is known.

What it cannot see. A key or value that is a view of a fused projection is as large as that
projection at most, and so nothing is said of it. Of a key that is rotated in part, only the rotated
part is an operation of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.watch.op_kinds import (
    CASTS,
    FUSED_ATTENTION,
    MULTIPLIES,
    PRODUCTS,
    SOFTMAXES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from precheck.measure.blame.graph import Graph
    from precheck.measure.watch.segment import OpNode, Origin

_REPEATS = CASTS | {
    "aten._reshape_copy",
    "aten.clone",
    "aten.contiguous",
    "aten.expand_copy",
    "aten.index_select",
    "aten.repeat",
    "aten.repeat_interleave",
}
"""Copy all elements of their first input, the heads of keys several times."""

_JOINS = frozenset({"aten.cat", "aten.stack"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyProjection:
    """The product that gives keys, and which of its columns are keys."""

    index: int
    is_whole: bool
    """It gives nothing else."""
    columns: tuple[slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOperands:
    """The operations that computed what one attention reads, by index; () where not known."""

    scores: int
    query: tuple[int, ...]
    key: tuple[int, ...]
    value: tuple[int, ...]
    head_dim: int | None
    projection: KeyProjection | None
    """Of the keys; None if it is not known which of its columns they are."""
    is_key_normalised: bool
    """A normalisation lies between the projection of the keys and the scores."""


def attention_operands(graph: Graph) -> tuple[AttentionOperands, ...]:
    """Every attention of a segment of which something is known, in the order of their scores."""
    found = (_operands(graph, node, origins) for node, origins in _attentions(graph))
    return tuple(each for each in found if each.query or each.key or each.value)


def _attentions(graph: Graph) -> Iterator[tuple[OpNode, list[Origin | None]]]:
    """The scores, or the fused attention, and the query, key and value that it reads."""
    softmaxes = {
        node.index: _softmaxes(graph, node)
        for node in graph.nodes
        if graph.is_attention(node) and FUSED_ATTENTION not in node.op
    }
    for node in graph.nodes:
        if FUSED_ATTENTION in node.op:
            yield node, list(node.inputs[:3])
        elif node.index in softmaxes:
            others = (found for index, found in softmaxes.items() if index != node.index)
            # scores that are a sum of products: each key is a part of the whole one
            if softmaxes[node.index].isdisjoint(frozenset[int]().union(*others)):
                # baddbmm adds its first input
                yield node, [*node.inputs[-2:], _value(graph, softmaxes[node.index])]


def _softmaxes(graph: Graph, scores: OpNode) -> frozenset[int]:
    """The softmaxes that raw scores reach."""
    todo, seen = [scores], set[int]()
    while todo:
        node = todo.pop()
        seen.add(node.index)
        if node.op not in SOFTMAXES:
            todo += [
                child
                for child in graph.children(node)
                if graph.is_score(child) and child.index not in seen
            ]
    return frozenset(index for index in seen if graph.nodes[index].op in SOFTMAXES)


def _value(graph: Graph, softmaxes: Iterable[int]) -> Origin | None:
    """What softmaxes are multiplied by; None if that is not one tensor."""
    weights = set(softmaxes)
    values: set[Origin] = set()
    for node in graph.nodes:
        if not node.inputs or node.inputs[0].node not in weights:
            continue
        if node.op in PRODUCTS:
            values.add(node.inputs[-1])
        elif len(node.inputs) == 1:  # a cast, a copy
            weights.add(node.index)
    return values.pop() if len(values) == 1 else None


def _operands(graph: Graph, node: OpNode, origins: list[Origin | None]) -> AttentionOperands:
    roots = [_roots(graph, origin) for origin in origins]
    query, key, value = (
        _made_by(graph, source, others=roots[:place] + roots[place + 1 :])
        for place, source in enumerate(_source(graph, origin) for origin in origins)
    )
    source = _source(graph, origins[1])
    head_dim = None if source is None or not key else _head_dim(source)
    return AttentionOperands(
        scores=node.index,
        query=query,
        key=key,
        value=value,
        head_dim=head_dim,
        projection=_key_projection(graph, source, roots, head_dim=head_dim),
        is_key_normalised=_is_normalised(graph, source),
    )


def _source(graph: Graph, origin: Origin | None) -> OpNode | None:
    """The operation behind views and copies of a tensor."""
    node = None if origin is None or origin.node < 0 else graph.nodes[origin.node]
    while node is not None and node.op in _REPEATS:
        before = node.inputs[0].node
        node = graph.nodes[before] if before >= 0 else None
    return node


def _roots(graph: Graph, origin: Origin | None) -> frozenset[Origin]:
    """The projections that a tensor is elementwise made from."""
    return frozenset() if origin is None else graph.projections_behind(origin)


def _made_by(
    graph: Graph, source: OpNode | None, *, others: list[frozenset[Origin]]
) -> tuple[int, ...]:
    """The operations that computed the elements of a tensor, or of the part that is rotated.

    Args:
        graph: of the segment.
        source: the operation behind the tensor.
        others: the projections behind the other two of query, key and value.
    """
    if source is None:
        return ()
    if source.op in _JOINS:
        parts = {origin.node for origin in source.inputs if origin.node >= 0}
        parts = {part for part in parts if not graph.is_projection(graph.nodes[part])}
        # another operation's result, of which this joins a part, is as large as the whole
        return tuple(sorted(parts)) if _num_elements(graph, parts) <= _size(source) else ()
    shared = {root.node for roots in others for root in roots}
    # the math kernel of scaled_dot_product_attention scales keys, and the cache does not hold that
    is_scaled = source.op in MULTIPLIES and len(source.inputs) == 1
    return () if is_scaled or source.index in shared else (source.index,)


def _size(node: OpNode) -> int:
    return math.prod(node.shape)


def _num_elements(graph: Graph, indices: Iterable[int]) -> int:
    return sum(_size(graph.nodes[index]) for index in indices)


def _head_dim(key: OpNode) -> int | None:
    """The size of a head, where the operation behind the key gives ``(batch, heads, seq, dim)``."""
    return key.shape[-1] if len(key.shape) == 4 else None  # noqa: PLR2004


def _is_normalised(graph: Graph, key: OpNode | None) -> bool:
    """Whether a normalisation lies between the projection of the keys and the scores."""
    todo, seen = [] if key is None else [key.index], set[int]()
    while todo:
        index = todo.pop()
        if index < 0 or index in seen or graph.is_projection(graph.nodes[index]):
            continue
        seen.add(index)
        if graph.is_norm(graph.nodes[index]):
            return True
        todo += [origin.node for origin in graph.nodes[index].inputs]
    return False


def _key_projection(
    graph: Graph, source: OpNode | None, roots: list[frozenset[Origin]], *, head_dim: int | None
) -> KeyProjection | None:
    """The projection of the keys; None if it is not known which of its columns they are."""
    queries, keys, values = roots
    if len({root.node for root in keys}) != 1 or source is None:
        return None
    node = graph.nodes[next(iter(keys)).node]
    if node.index not in {root.node for root in queries | values}:
        return KeyProjection(index=node.index, is_whole=True, columns=(slice(None),))
    if head_dim is None or source.index == node.index:
        return None
    columns = node.shape[-1]
    width = _size(source) * columns // _size(node)
    start = min(root.offset for root in keys)
    if start == head_dim and columns == 3 * width:  # of every head its query, key and value
        found = tuple(
            slice(head + head_dim, head + 2 * head_dim) for head in range(0, columns, 3 * head_dim)
        )
    elif 0 < start == columns - 2 * width:  # all queries, all keys, all values
        found = (slice(start, start + width),)
    else:
        return None
    return KeyProjection(index=node.index, is_whole=False, columns=found)
