"""Which operations of a segment give the operands that engines may narrow, by the data flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.blame.graph import SegmentRole
from precheck.measure.watch.op_kinds import ADDS, COPIES, FUSED_NORMS, MULTIPLIES, REDUCTIONS
from precheck.measure.watch.segment import HIDDEN

if TYPE_CHECKING:
    from precheck.measure.blame.graph import Graph
    from precheck.measure.watch.segment import OpNode, Origin

_SQUARES = MULTIPLIES | {"aten.pow", "aten.square"}
_SCALINGS = MULTIPLIES | {"aten.div", "aten.div_"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandNodes:
    """Operations by what they give, by index."""

    linear_outputs: frozenset[int]
    branches: frozenset[int]
    """The last projections of a sub-block, and what adds up their results."""
    mean_squares: frozenset[int]
    """Means of the squares of the residual stream."""
    fused_norms: frozenset[int]
    """Norms of it that are one operation."""
    scores: dict[int, int]
    """Raw scores, and the same once they are scaled."""


def operand_nodes(graph: Graph) -> OperandNodes:
    """The operations of a segment that give operands."""
    projections = [node for node in graph.nodes if graph.is_projection(node)]
    is_block = graph.role is SegmentRole.BLOCK
    last = [node for node in projections if is_block and not _is_projected_again(graph, node)]
    sums = {
        later.index
        for node in last
        for later in graph.downstream(node)
        if later.op in ADDS and not graph.is_norm(later)
    }
    return OperandNodes(
        linear_outputs=frozenset(node.index for node in projections),
        branches=frozenset({node.index for node in last} | sums),
        mean_squares=frozenset(
            node.index for node in graph.nodes if _is_mean_of_squares(graph, node)
        ),
        fused_norms=frozenset(
            node.index
            for node in graph.nodes
            if node.op in FUSED_NORMS and _is_residual(graph, node.inputs[0])
        ),
        scores={
            node.index: _scaled(graph, node).index
            for node in graph.nodes
            if graph.is_score(node) and graph.is_attention(node)
        },
    )


def _is_projected_again(graph: Graph, node: OpNode) -> bool:
    return any(
        graph.is_weight_product(later) or graph.is_attention(later)
        for later in graph.downstream(node)
    )


def _is_mean_of_squares(graph: Graph, node: OpNode) -> bool:
    if node.op not in REDUCTIONS or not graph.is_norm(node) or node.inputs[0].node < 0:
        return False
    squares = graph.nodes[node.inputs[0].node]
    return squares.op in _SQUARES and _is_residual(graph, squares.inputs[0])


def _is_residual(graph: Graph, origin: Origin) -> bool:
    """Whether it is the stream that layers hand on and add to."""
    while origin.node >= 0 and graph.nodes[origin.node].op in COPIES:
        origin = graph.nodes[origin.node].inputs[0]
    if origin.node < 0:
        return origin.node == HIDDEN
    return graph.is_residual_add(graph.nodes[origin.node])


def _scaled(graph: Graph, scores: OpNode) -> OpNode:
    """What raw scores become by one number; they themselves if they are not scaled."""
    scalings = (
        child
        for child in graph.children(scores)
        if child.op in _SCALINGS and len(child.inputs) == 1 and graph.is_score(child)
    )
    return next(scalings, scores)
