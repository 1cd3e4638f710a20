"""Decides why an operation overflowed: the mechanism, from the data flow of its segment.

``_RULES`` holds the mechanisms in the order in which they are tried. A new one is a line there and
a function next to the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.measure.blame.attention_operands import attention_operands
from precheck.measure.blame.graph import Graph, SegmentRole
from precheck.measure.blame.operand_nodes import operand_nodes
from precheck.measure.watch.op_kinds import (
    ADDS,
    FUSED_ATTENTION,
    MASK_NUMBER,
    MASK_SENTINEL,
    MASKINGS,
    MULTIPLIES,
    PRODUCTS,
    SOFTMAXES,
    STORING,
)
from precheck.measure.watch.segment import OTHER
from precheck.records.mechanism import MECHANISMS, Mechanism
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precheck.measure.blame.attention_operands import AttentionOperands
    from precheck.measure.blame.examine import Producer
    from precheck.measure.blame.operand_nodes import OperandNodes
    from precheck.measure.watch.segment import OpNode, Segment

_HALVES = frozenset(torch_dtype(dtype) for dtype in Dtype if dtype.is_half)


class Held(NamedTuple):
    """What an operation of a run had to hold."""

    node: OpNode
    """The operation, as the report names it."""
    abs_max: float
    """The magnitude in float32."""
    mechanism: Mechanism
    match: OpNode
    """The operation of the reference that held it."""


class Classifier:
    """Says why operations overflow, and which of them attention reads.

    All layers of a kind are built alike, so a graph is only made for a structure that is new.
    """

    def __init__(self) -> None:
        self._by_structure: dict[tuple[object, ...], list[Mechanism | None]] = {}
        self._attentions: dict[tuple[object, ...], tuple[AttentionOperands, ...]] = {}
        self._operands: dict[tuple[object, ...], OperandNodes] = {}

    def producer_mechanism(
        self, producer: Producer, segment: Segment, reference: Segment | None, role: SegmentRole
    ) -> Mechanism:
        """Why ``producer``, an operation of ``segment``, made unexpected elements."""
        if producer.node.overflowed_inside:
            return Mechanism.ACCUMULATION
        if producer.is_weight:
            return Mechanism.WEIGHTS
        if producer.node.op == STORING:
            return Mechanism.STORING
        return self.mechanism(producer.node, segment, reference, role)

    def mechanism(
        self, node: OpNode, segment: Segment, reference: Segment | None, role: SegmentRole
    ) -> Mechanism:
        """Why ``node`` of ``segment`` overflowed, by the data flow alone.

        Where the reference has the same operation, the reference's segment decides: its masks are
        recognisable.
        """
        if reference is not None and not node.is_cast:
            for match in reference.nodes:
                if match.key == node.key and not match.is_cast:
                    return self._mechanisms(reference, role)[match.index] or Mechanism.OTHER
        return self._mechanisms(segment, role)[node.index] or Mechanism.OTHER

    def peaks(self, segment: Segment, reference: Segment, role: SegmentRole) -> Iterator[Held]:
        """What operations that ran in 16 bits had to hold, and why.

        Constants, masks and what ran in float32 are left out. A narrowing cast has to hold its
        input.
        """
        reference_nodes = {node.key: node for node in reference.nodes if not node.is_cast}
        # once for all: a recurrence written in Python has thousands of operations
        mechanisms = self._mechanisms(segment, role)
        reference_mechanisms = self._mechanisms(reference, role)
        for node in segment.nodes:
            if node.dtype not in _HALVES or node.minimum is None:
                continue
            source = _cast_source(node, segment) if node.is_cast else node
            match = None if source is None else reference_nodes.get(source.key)
            if match is None or match.abs_max is None:
                continue
            if node.is_cast:
                mechanism = mechanisms[node.index]
                held = node, match.abs_max
            elif match.shape == node.shape:
                mechanism = reference_mechanisms[match.index]
                held = match, _abs_max_to_hold(node, match.abs_max)
            else:
                continue
            if mechanism is not None and not _is_masked(match, mechanism):
                yield Held(*held, mechanism, match)

    def _mechanisms(self, segment: Segment, role: SegmentRole) -> list[Mechanism | None]:
        """The mechanism of every operation; None for constants."""
        structure = _structure(segment, role)
        if structure not in self._by_structure:
            graph = Graph(nodes=segment.nodes, role=role)
            self._by_structure[structure] = [
                mechanism_in(graph, node) if graph.is_activation(node) else None
                for node in segment.nodes
            ]
        return self._by_structure[structure]

    def attentions(self, segment: Segment, role: SegmentRole) -> tuple[AttentionOperands, ...]:
        """What every attention of a segment reads, by the index of operations."""
        key = (_structure(segment, role), tuple(node.shape for node in segment.nodes))
        if key not in self._attentions:
            graph = Graph(nodes=segment.nodes, role=role)
            self._attentions[key] = attention_operands(graph)
        return self._attentions[key]

    def operand_nodes(self, segment: Segment, role: SegmentRole) -> OperandNodes:
        """Which operations of a segment give what engines may narrow."""
        structure = _structure(segment, role)
        if structure not in self._operands:
            graph = Graph(nodes=segment.nodes, role=role)
            self._operands[structure] = operand_nodes(graph)
        return self._operands[structure]


def _cast_source(cast: OpNode, segment: Segment) -> OpNode | None:
    """What a narrowing cast was given, if an operation of the segment made it in float32."""
    origin = cast.inputs[0].node
    source = segment.nodes[origin] if origin >= 0 else None
    return source if source is not None and source.dtype is torch.float32 else None


def _is_masked(node: OpNode, mechanism: Mechanism) -> bool:
    """Whether an operation of the reference holds a mask that float16 cannot.

    Products are measured as they are. What is added to scores and is below a sum of two numbers of
    float16 is a mask.
    """
    if node.minimum is None or node.op in PRODUCTS:
        return False
    if MECHANISMS[mechanism].is_in_scores:
        return node.minimum < 2 * torch.finfo(torch.float16).min
    return mechanism is Mechanism.OTHER and node.minimum <= MASK_NUMBER


def _abs_max_to_hold(node: OpNode, reference_abs_max: float) -> float:
    """What an operation has to hold: the reference's value, unless it plainly computes another.

    An epsilon of the dtype (``x / norm.clamp_min(finfo.eps)`` with a norm of zero) makes float32
    larger than anything that float16 holds, and float16 finite.
    """
    assert node.dtype is not None  # noqa: S101  of 16 bits
    own = node.abs_max
    does_not_fit = reference_abs_max > torch.finfo(node.dtype).max
    return own if does_not_fit and own is not None else reference_abs_max


def _structure(segment: Segment, role: SegmentRole) -> tuple[object, ...]:
    """Everything the rules read: equal for segments that are built alike, whichever layer it is."""
    first = segment.nodes[0].module if segment.nodes else ""
    numbers: dict[str, int] = {first: 0}
    return (
        role,
        tuple(
            (
                numbers.setdefault(node.module, len(numbers)),
                node.op,
                node.inputs,
                node.has_mask_scalar,
                node.minimum is not None and node.minimum <= MASK_SENTINEL,
            )
            for node in segment.nodes
        ),
    )


def mechanism_in(graph: Graph, node: OpNode) -> Mechanism:
    """Why ``node`` overflows if it does; the first rule that applies decides."""
    for mechanism, applies in _RULES:
        if applies(graph, node):
            return mechanism
    return Mechanism.OTHER


def _is_mask(graph: Graph, node: OpNode) -> bool:
    """A mask is written or added, or the softmax of a fully masked row is taken."""
    if node.op in SOFTMAXES or node.op in MASKINGS:
        return graph.is_score(node)
    if FUSED_ATTENTION in node.op:
        return any(origin.node == OTHER for origin in node.inputs[3:])
    from_outside = any(origin.node == OTHER for origin in node.inputs)
    is_sum = node.op in ADDS and graph.is_score(node)
    if node.has_mask_scalar or (is_sum and from_outside):
        return True
    # a minimum at the sentinel is a mask only if one went in: float32 can overflow to -inf
    return _holds_mask(node) and (
        from_outside or any(_holds_mask(parent) for parent in graph.parents(node))
    )


def _holds_mask(node: OpNode) -> bool:
    return node.has_mask_scalar or (node.minimum is not None and node.minimum <= MASK_SENTINEL)


def _is_embedding(graph: Graph, node: OpNode) -> bool:
    if graph.role is not SegmentRole.EMBEDDING:
        return False
    return node.op == "aten.embedding" or (
        graph.is_activation(node) and not graph.is_projection(node)
    )


def _is_logits(graph: Graph, node: OpNode) -> bool:
    """The final projection and what scales or caps its result."""
    if graph.role is not SegmentRole.HEAD:
        return False
    return not any(graph.is_weight_product(later) for later in graph.downstream(node))


def _is_mlp_output(graph: Graph, node: OpNode) -> bool:
    """The last projection of a sub-block that is not attention."""
    if not graph.is_projection(node) or graph.role is not SegmentRole.BLOCK:
        return False
    if any(
        graph.is_weight_product(later) or graph.is_attention(later)
        for later in graph.downstream(node)
    ):
        return False
    return not any(graph.is_attention(earlier) for earlier in graph.upstream(node))


def _is_residual(graph: Graph, node: OpNode) -> bool:
    if graph.is_residual_add(node):
        return True
    if node.op not in ADDS or graph.is_score(node):
        return False
    # branches of one layer summed before they join the stream: attention + MLP, experts
    joins_stream = any(graph.is_residual_add(child) for child in graph.children(node))
    return joins_stream and all(origin.node >= 0 for origin in node.inputs[:2])


def _is_gated_product(graph: Graph, node: OpNode) -> bool:
    """``act(gate) * up``: two activations of different projections, or halves of one."""
    if node.op not in MULTIPLIES or len(node.inputs) < 2:  # noqa: PLR2004  a scalar factor
        return False
    gate, up = (graph.projections_behind(origin) for origin in node.inputs[:2])
    if not gate or not up or gate == up:
        return False
    return any(graph.is_weight_product(later) for later in graph.downstream(node))


_RULES: tuple[tuple[Mechanism, Callable[[Graph, OpNode], bool]], ...] = (
    (Mechanism.NORM, Graph.is_norm),
    (Mechanism.MASK, _is_mask),
    (Mechanism.ATTENTION_SCORES, Graph.is_score),
    (Mechanism.EMBEDDING, _is_embedding),
    (Mechanism.LOGITS, _is_logits),
    (Mechanism.MLP_OUTPUT, _is_mlp_output),
    (Mechanism.PROJECTION, Graph.is_projection),
    (Mechanism.RESIDUAL, _is_residual),
    (Mechanism.GATED_PRODUCT, _is_gated_product),
)
"""The more particular mechanisms come first."""
