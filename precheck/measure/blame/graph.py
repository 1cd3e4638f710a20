"""Says why an operation overflowed, from the data flow of its segment; never from names.

The graph is the list of operations with the origins of their inputs. What counts is what an
operation is made of and what is made of it: raw scores are a product of two activations that
reaches a softmax, a residual add has one addend that the other was computed from, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from precheck.measure.watch.op_kinds import (
    ADDS,
    COPIES,
    ELEMENTWISE,
    FUSED_ATTENTION,
    MASKINGS,
    MULTIPLIES,
    NORMS,
    PRODUCTS,
    REDUCTIONS,
    SOFTMAXES,
)
from precheck.measure.watch.reduce import MASK_SENTINEL
from precheck.measure.watch.segment import HIDDEN, OTHER, WEIGHT, OpNode, Origin
from precheck.records.mechanism import Mechanism

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class SegmentRole(StrEnum):
    """Where a segment stands in the forward."""

    EMBEDDING = "embedding"
    """Before the first decoder layer of its stack."""
    BLOCK = "block"
    BETWEEN = "between"
    HEAD = "head"
    """After the last decoder layer."""


@dataclass(eq=False, kw_only=True)
class Graph:
    """The operations of one segment and how they read each other."""

    nodes: list[OpNode]
    position: SegmentRole

    def classify(self, node: OpNode) -> Mechanism:
        """Why ``node`` would overflow, were it to."""
        for mechanism, applies in self._ladder:
            if applies(node):
                return mechanism
        return Mechanism.OTHER

    def is_activation(self, node: OpNode) -> bool:
        """Whether ``node`` is computed from hidden states or an embedding, not a constant."""
        return node.index in self._activations

    @cached_property
    def _ladder(self) -> tuple[tuple[Mechanism, Callable[[OpNode], bool]], ...]:
        """The first that applies decides; the more particular stand first."""
        return (
            (Mechanism.NORM, self._is_norm),
            (Mechanism.MASK, self._is_mask),
            (Mechanism.ATTENTION_SCORES, self._is_score),
            (Mechanism.EMBEDDING, self._is_embedding),
            (Mechanism.LOGITS, self._is_logits),
            (Mechanism.MLP_OUTPUT, self._is_mlp_output),
            (Mechanism.PROJECTION, self._is_linear),
            (Mechanism.RESIDUAL, self._is_residual),
            (Mechanism.GATED_PRODUCT, self._is_gated_product),
        )

    @cached_property
    def _children(self) -> list[list[OpNode]]:
        children: list[list[OpNode]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in {origin.node for origin in node.inputs if origin.node >= 0}:
                children[parent].append(node)
        return children

    def _parents(self, node: OpNode) -> Iterator[OpNode]:
        return (self.nodes[origin.node] for origin in node.inputs if origin.node >= 0)

    def _walk(self, start: OpNode, step: Callable[[OpNode], Iterator[OpNode]]) -> Iterator[OpNode]:
        """Everything that repeated ``step`` reaches, without ``start``."""
        seen: set[int] = set()
        todo = list(step(start))
        while todo:
            node = todo.pop()
            if node.index not in seen:
                seen.add(node.index)
                yield node
                todo.extend(step(node))

    def _downstream(self, node: OpNode) -> Iterator[OpNode]:
        """What ``node`` leads to within its sub-block: not beyond the residual add."""
        return (
            child for child in self._children[node.index] if child.index not in self._residual_adds
        )

    def _upstream(self, node: OpNode) -> Iterator[OpNode]:
        """What ``node`` comes from within its sub-block."""
        return (parent for parent in self._parents(node) if parent.index not in self._residual_adds)

    @cached_property
    def _activations(self) -> set[int]:
        found: set[int] = set()
        for node in self.nodes:
            if node.op == "aten.embedding" or any(
                origin.node == HIDDEN or origin.node in found for origin in node.inputs
            ):
                found.add(node.index)
        return found

    @cached_property
    def _weight_made(self) -> set[int]:
        """Operations on weights alone: an expert picked, a weight normalised."""
        found: set[int] = set()
        for node in self.nodes:
            if node.inputs and all(
                origin.node == WEIGHT or origin.node in found for origin in node.inputs
            ):
                found.add(node.index)
        return found

    def _is_weight(self, origin: Origin) -> bool:
        return origin.node == WEIGHT or origin.node in self._weight_made

    def _reads_weight(self, node: OpNode) -> bool:
        if any(self._is_weight(origin) for origin in node.inputs):
            return True
        # an expert's weight is picked by routing: index(weight, chosen)
        return any(
            self._is_weight(origin)
            for parent in self._parents(node)
            if parent.op in {"aten.index", "aten.index_select", "aten.gather"}
            for origin in parent.inputs[:1]
        )

    def _is_plain_linear(self, node: OpNode) -> bool:
        return node.op in PRODUCTS and self._reads_weight(node)

    def _is_linear(self, node: OpNode) -> bool:
        """A product with a weight, or the bias added to one."""
        if self._is_plain_linear(node):
            return True
        is_bias = node.op in ADDS and self._reads_weight(node)
        return is_bias and any(self._is_plain_linear(each) for each in self._parents(node))

    def _is_attention(self, node: OpNode) -> bool:
        return FUSED_ATTENTION in node.op or node.index in self._score_products

    @cached_property
    def _score_products(self) -> set[int]:
        """Products of two activations that reach a softmax through elementwise operations."""

        def onward(node: OpNode) -> Iterator[OpNode]:
            return (each for each in self._children[node.index] if node.op not in SOFTMAXES)

        def elementwise(node: OpNode) -> Iterator[OpNode]:
            return (each for each in onward(node) if each.op in ELEMENTWISE or each.op in SOFTMAXES)

        return {
            node.index
            for node in self.nodes
            if node.op in PRODUCTS
            and not self._reads_weight(node)
            and any(each.op in SOFTMAXES for each in self._walk(node, elementwise))
        }

    @cached_property
    def _score_steps(self) -> set[int]:
        """From raw scores to the softmax, both ends included."""

        def onward(node: OpNode) -> Iterator[OpNode]:
            if node.op in SOFTMAXES:
                return iter(())
            return (
                each
                for each in self._children[node.index]
                if each.op in ELEMENTWISE or each.op in SOFTMAXES
            )

        found = set(self._score_products)
        for index in self._score_products:
            found |= {each.index for each in self._walk(self.nodes[index], onward)}
        return found

    def _is_score(self, node: OpNode) -> bool:
        return node.index in self._score_steps

    def _is_mask(self, node: OpNode) -> bool:
        """A mask is written or added, or the softmax of a fully masked row is taken."""
        if node.op in SOFTMAXES or node.op in MASKINGS:
            return node.index in self._score_steps
        if FUSED_ATTENTION in node.op:
            return any(origin.node == OTHER for origin in node.inputs[3:])
        from_outside = any(origin.node == OTHER for origin in node.inputs)
        is_sum = node.op in ADDS and node.index in self._score_steps
        if node.has_mask_scalar or (is_sum and from_outside):
            return True
        # a minimum at the sentinel is a mask only if one went in: float32 can overflow to -inf
        return self._holds_mask(node) and (
            from_outside or any(self._holds_mask(parent) for parent in self._parents(node))
        )

    def _holds_mask(self, node: OpNode) -> bool:
        return node.has_mask_scalar or (node.minimum is not None and node.minimum <= MASK_SENTINEL)

    def _is_norm(self, node: OpNode) -> bool:
        return node.op in NORMS or node.index in self._norm_steps

    @cached_property
    def _norm_steps(self) -> set[int]:
        """What a normalisation does besides its rsqrt: squares, means, scaling, casts."""
        cores = [node for node in self.nodes if node.op in NORMS]
        inner = {node.module for node in cores} - self._modules_with_products
        found = {node.index for node in self.nodes if node.module in inner}

        def statistics(node: OpNode) -> Iterator[OpNode]:
            return (
                each
                for each in self._parents(node)
                if each.op in REDUCTIONS
                or (each.op in ELEMENTWISE and node.op in REDUCTIONS)
                or (
                    each.op in {"aten.add", "aten.maximum", "aten.clamp"}
                    and node.op == "aten.rsqrt"
                )
            )

        for core in cores:
            found |= {each.index for each in self._walk(core, statistics)}
        return found

    @cached_property
    def _modules_with_products(self) -> set[str]:
        return {node.module for node in self.nodes if node.op in PRODUCTS or node.op in SOFTMAXES}

    def _is_embedding(self, node: OpNode) -> bool:
        if self.position is not SegmentRole.EMBEDDING:
            return False
        return node.op == "aten.embedding" or (
            self.is_activation(node) and not self._is_linear(node)
        )

    def _is_logits(self, node: OpNode) -> bool:
        """The final projection and what scales or caps its result."""
        if self.position is not SegmentRole.HEAD:
            return False
        return not any(self._is_plain_linear(each) for each in self._walk(node, self._downstream))

    def _is_mlp_output(self, node: OpNode) -> bool:
        """The last linear of a sub-block that is not attention."""
        if not self._is_linear(node) or self.position is not SegmentRole.BLOCK:
            return False
        after = list(self._walk(node, self._downstream))
        if any(self._is_plain_linear(each) or self._is_attention(each) for each in after):
            return False
        return not any(self._is_attention(each) for each in self._walk(node, self._upstream))

    def _is_residual(self, node: OpNode) -> bool:
        if node.index in self._residual_adds:
            return True
        if node.op not in ADDS or node.index in self._score_steps:
            return False
        # branches of one layer summed before they join the stream: attention + MLP, experts
        steps = self._children[node.index]
        return any(each.index in self._residual_adds for each in steps) and all(
            origin.node >= 0 for origin in node.inputs[:2]
        )

    @cached_property
    def _residual_adds(self) -> set[int]:
        """Adds of which one addend was computed from the other, through a weight or attention."""
        return {
            node.index
            for node in self.nodes
            if node.op in {"aten.add", "aten.add_"}
            and len(node.inputs) > 1
            and (self._skips(*node.inputs[:2]) or self._skips(*reversed(node.inputs[:2])))
        }

    def _skips(self, stream: Origin, branch: Origin) -> bool:
        """Whether ``branch`` was made from ``stream`` with a product on the way."""
        stream = self._bare(stream)
        if branch.node < 0 or stream.node in {WEIGHT, OTHER}:
            return False
        todo = [(branch.node, False)]
        seen: set[tuple[int, bool]] = set()
        while todo:
            index, through = todo.pop()
            if (index, through) in seen:
                continue
            seen.add((index, through))
            node = self.nodes[index]
            through = through or node.op in PRODUCTS or FUSED_ATTENTION in node.op
            for origin in node.inputs:
                if through and self._bare(origin) == stream:
                    return True
                if origin.node >= 0:
                    todo.append((origin.node, through))
        return False

    def _bare(self, origin: Origin) -> Origin:
        """The origin behind casts and copies: the same numbers."""
        while origin.node >= 0 and self.nodes[origin.node].op in COPIES:
            origin = self.nodes[origin.node].inputs[0]
        return origin

    def _is_gated_product(self, node: OpNode) -> bool:
        """``act(gate) * up``: two activations of different projections, or halves of one."""
        if node.op not in MULTIPLIES or len(node.inputs) < 2:  # noqa: PLR2004  a scalar factor
            return False
        gate, up = (self._roots(origin) for origin in node.inputs[:2])
        if not gate or not up or gate == up:
            return False
        return any(self._is_plain_linear(each) for each in self._walk(node, self._downstream))

    def _roots(self, origin: Origin) -> frozenset[Origin]:
        """The linears an operand is elementwise made from; empty if it has other roots."""
        if origin.node < 0:
            return frozenset()
        is_root = self._is_linear(self.nodes[origin.node])
        return frozenset({origin}) if is_root else self._elementwise_roots[origin.node]

    @cached_property
    def _elementwise_roots(self) -> list[frozenset[Origin]]:
        """Of every node that is no linear, in one pass: a recurrence has 2 ** n paths."""
        found: list[frozenset[Origin]] = []
        linear = [self._is_linear(node) for node in self.nodes]
        for node in self.nodes:
            roots: frozenset[Origin] = frozenset()
            if node.op in ELEMENTWISE or self._is_norm(node):
                for origin in node.inputs:
                    if 0 <= origin.node < len(found):
                        own = frozenset({origin}) if linear[origin.node] else found[origin.node]
                        roots |= own
            found.append(roots)
        return found
