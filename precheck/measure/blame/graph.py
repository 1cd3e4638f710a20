"""The data flow of a segment: which operation reads which, and what each is made of.

Names of modules mean nothing here. Raw attention scores are a product of two activations that
reaches a softmax, a residual add has one addend that was computed from the other, a projection
multiplies by a weight.
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
    NORMS,
    PRODUCTS,
    REDUCTIONS,
    SOFTMAXES,
)
from precheck.measure.watch.segment import HIDDEN, OTHER, WEIGHT, OpNode, Origin

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
    role: SegmentRole

    def children(self, node: OpNode) -> list[OpNode]:
        """The operations that read ``node``."""
        return self._children[node.index]

    def parents(self, node: OpNode) -> Iterator[OpNode]:
        """The operations that ``node`` reads."""
        return (self.nodes[origin.node] for origin in node.inputs if origin.node >= 0)

    def downstream(self, node: OpNode) -> Iterator[OpNode]:
        """Everything computed from ``node`` in its sub-block: the walk stops at residual adds."""
        return self._reachable(node, self._children_in_sub_block)

    def upstream(self, node: OpNode) -> Iterator[OpNode]:
        """Everything in its sub-block that ``node`` is computed from."""
        return self._reachable(node, self._parents_in_sub_block)

    def is_activation(self, node: OpNode) -> bool:
        """Whether ``node`` is computed from hidden states or an embedding, not a constant."""
        return node.index in self._activations

    def is_weight_product(self, node: OpNode) -> bool:
        """Whether ``node`` multiplies an activation by a weight."""
        return node.op in PRODUCTS and self._reads_weight(node)

    def is_projection(self, node: OpNode) -> bool:
        """Whether ``node`` is a product with a weight, or adds the bias to one."""
        if self.is_weight_product(node):
            return True
        is_bias = node.op in ADDS and self._reads_weight(node)
        return is_bias and any(self.is_weight_product(parent) for parent in self.parents(node))

    def is_attention(self, node: OpNode) -> bool:
        """Whether ``node`` is fused attention, or computes raw scores."""
        return FUSED_ATTENTION in node.op or node.index in self._score_products

    def is_score(self, node: OpNode) -> bool:
        """Whether ``node`` stands between raw scores and their softmax, both included."""
        return node.index in self._score_steps

    def is_norm(self, node: OpNode) -> bool:
        """Whether ``node`` belongs to a normalisation."""
        return node.op in NORMS or node.index in self._norm_steps

    def is_residual_add(self, node: OpNode) -> bool:
        """Whether one addend of ``node`` was computed from the other."""
        return node.index in self._residual_adds

    def projections_behind(self, origin: Origin) -> frozenset[Origin]:
        """The projections an operand is elementwise made from; empty if it has other roots."""
        if origin.node < 0:
            return frozenset()
        is_root = self.is_projection(self.nodes[origin.node])
        return frozenset({origin}) if is_root else self._elementwise_roots[origin.node]

    @cached_property
    def _children(self) -> list[list[OpNode]]:
        children: list[list[OpNode]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in {origin.node for origin in node.inputs if origin.node >= 0}:
                children[parent].append(node)
        return children

    def _reachable(
        self, start: OpNode, step: Callable[[OpNode], Iterator[OpNode]]
    ) -> Iterator[OpNode]:
        """Everything that repeated ``step`` reaches, without ``start``."""
        seen: set[int] = set()
        todo = list(step(start))
        while todo:
            node = todo.pop()
            if node.index not in seen:
                seen.add(node.index)
                yield node
                todo.extend(step(node))

    def _children_in_sub_block(self, node: OpNode) -> Iterator[OpNode]:
        return (child for child in self.children(node) if not self.is_residual_add(child))

    def _parents_in_sub_block(self, node: OpNode) -> Iterator[OpNode]:
        return (parent for parent in self.parents(node) if not self.is_residual_add(parent))

    @cached_property
    def _activations(self) -> set[int]:
        activations: set[int] = set()
        for node in self.nodes:
            if (
                node.op == "aten.embedding"
                or self._projects_data(node)
                or any(
                    origin.node == HIDDEN or origin.node in activations for origin in node.inputs
                )
            ):
                activations.add(node.index)
        return activations

    def _projects_data(self, node: OpNode) -> bool:
        """Whether ``node`` takes pixels or sounds into the model, of whatever shape they are.

        Inside a layer what comes from outside are constants: rotations, relative positions.
        """
        return (
            self.role is not SegmentRole.BLOCK
            and self.is_weight_product(node)
            and not all(self._is_weight(origin) for origin in node.inputs)
        )

    @cached_property
    def _computed_from_weights(self) -> set[int]:
        """Operations on weights alone: an expert picked, a weight normalised."""
        indices: set[int] = set()
        for node in self.nodes:
            if node.inputs and all(
                origin.node == WEIGHT or origin.node in indices for origin in node.inputs
            ):
                indices.add(node.index)
        return indices

    def _is_weight(self, origin: Origin) -> bool:
        return origin.node == WEIGHT or origin.node in self._computed_from_weights

    def _reads_weight(self, node: OpNode) -> bool:
        if any(self._is_weight(origin) for origin in node.inputs):
            return True
        # an expert's weight is picked by routing: index(weight, chosen)
        return any(
            self._is_weight(origin)
            for parent in self.parents(node)
            if parent.op in {"aten.index", "aten.index_select", "aten.gather"}
            for origin in parent.inputs[:1]
        )

    @cached_property
    def _score_products(self) -> set[int]:
        """Products of two activations that reach a softmax through elementwise operations."""
        return {
            node.index
            for node in self.nodes
            if node.op in PRODUCTS
            and not self._reads_weight(node)
            and any(later.op in SOFTMAXES for later in self._reachable(node, self._towards_softmax))
        }

    @cached_property
    def _score_steps(self) -> set[int]:
        """From raw scores to the softmax, both ends included."""
        steps = set(self._score_products)
        for index in self._score_products:
            later = self._reachable(self.nodes[index], self._towards_softmax)
            steps |= {node.index for node in later}
        return steps

    def _towards_softmax(self, node: OpNode) -> Iterator[OpNode]:
        """Elementwise operations and softmaxes that read ``node``; nothing after a softmax."""
        if node.op in SOFTMAXES:
            return iter(())
        return (
            child
            for child in self.children(node)
            if child.op in ELEMENTWISE or child.op in SOFTMAXES
        )

    @cached_property
    def _norm_steps(self) -> set[int]:
        """What a normalisation does besides its rsqrt: squares, means, scaling, casts."""
        cores = [node for node in self.nodes if node.op in NORMS]
        norm_modules = {node.module for node in cores} - self._modules_with_products
        steps = {node.index for node in self.nodes if node.module in norm_modules}
        for core in cores:
            steps |= {node.index for node in self._reachable(core, self._norm_statistics)}
        return steps

    def _norm_statistics(self, node: OpNode) -> Iterator[OpNode]:
        """What the statistics of a normalisation are computed from, one step back."""
        return (
            parent
            for parent in self.parents(node)
            if parent.op in REDUCTIONS
            or (parent.op in ELEMENTWISE and node.op in REDUCTIONS)
            or (parent.op in {"aten.add", "aten.maximum", "aten.clamp"} and node.op == "aten.rsqrt")
        )

    @cached_property
    def _modules_with_products(self) -> set[str]:
        return {node.module for node in self.nodes if node.op in PRODUCTS or node.op in SOFTMAXES}

    @cached_property
    def _residual_adds(self) -> set[int]:
        """Adds of which one addend was computed from the other, through a weight or attention."""
        return {
            node.index
            for node in self.nodes
            if node.op in {"aten.add", "aten.add_"}
            and len(node.inputs) > 1
            and (self._is_branch(*node.inputs[:2]) or self._is_branch(*reversed(node.inputs[:2])))
        }

    def _is_branch(self, stream: Origin, branch: Origin) -> bool:
        """Whether ``branch`` was computed from ``stream`` with a product on the way."""
        stream = self._behind_copies(stream)
        if branch.node < 0 or stream.node in {WEIGHT, OTHER}:
            return False
        todo = [(branch.node, False)]
        seen: set[tuple[int, bool]] = set()
        while todo:
            index, has_product = todo.pop()
            if (index, has_product) in seen:
                continue
            seen.add((index, has_product))
            node = self.nodes[index]
            has_product = has_product or node.op in PRODUCTS or FUSED_ATTENTION in node.op
            for origin in node.inputs:
                if has_product and self._behind_copies(origin) == stream:
                    return True
                if origin.node >= 0:
                    todo.append((origin.node, has_product))
        return False

    def _behind_copies(self, origin: Origin) -> Origin:
        """The origin before casts and copies: the same numbers."""
        while origin.node >= 0 and self.nodes[origin.node].op in COPIES:
            origin = self.nodes[origin.node].inputs[0]
        return origin

    @cached_property
    def _elementwise_roots(self) -> list[frozenset[Origin]]:
        """Of every node that is no projection, in one pass: a recurrence has 2 ** n paths."""
        roots_of: list[frozenset[Origin]] = []
        is_projection = [self.is_projection(node) for node in self.nodes]
        for node in self.nodes:
            roots: frozenset[Origin] = frozenset()
            if node.op in ELEMENTWISE or self.is_norm(node):
                for origin in node.inputs:
                    if 0 <= origin.node < len(roots_of):
                        is_root = is_projection[origin.node]
                        roots |= frozenset({origin}) if is_root else roots_of[origin.node]
            roots_of.append(roots)
        return roots_of
