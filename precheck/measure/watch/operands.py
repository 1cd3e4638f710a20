"""How large what kernels read becomes: the numbers that some engines narrow to float16 inside.

Idea. A linear layer's input is at hand when its product runs, and reducing it reads far less than
the product does. An input that several linear layers read is reduced once. What a watched operation
returns needs nothing here: its bounds are known.

What it cannot see. A product whose weight stands on the left, and a padded batch in which real
tokens are not told by the shape, as in experts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.watch.op_kinds import (
    COPIES,
    FUSED_ATTENTION,
    FUSED_NORMS,
    PRODUCTS,
    SOFTMAXES,
)
from precheck.measure.watch.segment import WEIGHT, Figure
from precheck.records.sizes import Operand

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.watch.real_tokens import RealTokens
    from precheck.measure.watch.segment import OpNode, Origin, Segment

_WITH_OFFSET = frozenset({"aten._addmm_activation", "aten.addbmm", "aten.addmm", "aten.baddbmm"})
"""Products whose first tensor is added to the result."""
_NO_MATRICES = frozenset({"aten.convolution", "aten.dot", "aten.mv"})
_PICKS = frozenset({"aten.gather", "aten.index", "aten.index_select"})
"""An expert's weight, picked by routing."""
_QUANTISED, _GROUP = 32, 128
"""Neighbours that share a scale: of quantised activations, and of weights in 4 bits."""
_MOST_OF_A_MODULE = 8
"""Products of two activations that attention has in one module; recurrences have thousands."""


class OperandRecorder:
    """Records the operands of a float32 run into its segments.

    Args:
        real_tokens: which positions count.
    """

    def __init__(self, real_tokens: RealTokens) -> None:
        self._real = real_tokens
        self._read: set[tuple[Origin, torch.Size, int]] = set()
        """Inputs of linear layers that were reduced in this segment."""

    def begin(self) -> None:
        """A new segment: the origins of its tensors mean other operations."""
        self._read.clear()

    def record(
        self, segment: Segment, node: OpNode, tensors: list[Tensor], outputs: list[Tensor]
    ) -> None:
        """Records what one operation read.

        Args:
            segment: where it ran, its last operation.
            node: the operation.
            tensors: those among its arguments, in the order of ``node.inputs``.
            outputs: what it returned.
        """
        if node.op in PRODUCTS and node.op not in _NO_MATRICES:
            self._record_product(segment, node, tensors, outputs[0])
        elif FUSED_ATTENTION in node.op and self._real.mask is None:
            product = _fused_product(*tensors[:2])
            if product is not None:
                _keep(segment, node, Operand.QUERY_KEY_PRODUCT, product)
        elif node.op in FUSED_NORMS:
            states = self._real.select(tensors[0])
            if states is not None and states.numel():
                squares = states.square().mean(dim=-1)
                _keep(segment, node, Operand.NORM_MEAN_SQUARE, squares.max())

    def _record_product(
        self, segment: Segment, node: OpNode, tensors: list[Tensor], output: Tensor
    ) -> None:
        first = 1 if node.op in _WITH_OFFSET else 0
        if len(tensors) < first + 2:
            return
        left, right = node.inputs[first : first + 2]
        if _is_weight(segment.nodes, right):
            self._record_input(segment, node, left, tensors[first])
        elif node.ordinal < _MOST_OF_A_MODULE and not _is_weight(segment.nodes, left):
            self._record_attention(segment, node, tensors[first], tensors[first + 1], output)

    def _record_input(self, segment: Segment, node: OpNode, origin: Origin, states: Tensor) -> None:
        key = (origin, states.shape, states._version)  # noqa: SLF001  views share it
        if origin.node >= 0 and key in self._read:
            return
        self._read.add(key)
        real = self._real.select(states)
        if real is None or not real.numel():
            return
        _keep(segment, node, Operand.LINEAR_INPUT, _largest(real))
        columns = real.shape[-1]
        if columns % _QUANTISED == 0:
            sums = real.reshape(-1, _QUANTISED).sum(dim=-1)
            _keep(segment, node, Operand.SUM_OF_32, _largest(sums))
        if columns % _GROUP == 0:
            sums = real.abs().reshape(-1, _GROUP).sum(dim=-1)
            _keep(segment, node, Operand.ABS_SUM_OF_128, sums.max())

    def _record_attention(
        self, segment: Segment, node: OpNode, left: Tensor, right: Tensor, output: Tensor
    ) -> None:
        """Records a product of a query and keys, or of a softmax and values."""
        weights = _source(segment.nodes, node.inputs[-2])
        if weights is None or weights.op not in SOFTMAXES:
            if self._real.mask is None and left.dim() == right.dim() == 3 and left.numel():  # noqa: PLR2004
                pairs = left.abs().amax(dim=-2) * right.abs().amax(dim=-1)
                _keep(segment, node, Operand.QUERY_KEY_PRODUCT, pairs.max())
            return
        sums = self._real.select(output.abs().amax(-1, keepdim=True) / left.amax(-1, keepdim=True))
        if sums is not None and sums.numel():
            _keep(segment, node, Operand.VALUE_SUM, sums.max())


def _keep(segment: Segment, node: OpNode, operand: Operand, value: Tensor) -> None:
    segment.figures.append(Figure(operand, node.index, value.float()))


def _largest(tensor: Tensor) -> Tensor:
    """The largest magnitude, 0-d."""
    low, high = torch.aminmax(tensor)
    return torch.maximum(-low, high)


def _fused_product(query: Tensor, key: Tensor) -> Tensor | None:
    """The largest product of one channel of a query and of a key of its head, 0-d.

    None where the shapes do not fit together.

    Args:
        query: ``(batch, heads, seq, head_dim)``.
        key: ``(batch, kv_heads, kv_seq, head_dim)``; ``kv_heads`` divides ``heads``.
    """
    if query.dim() != 4 or key.dim() != 4 or query.shape[1] % key.shape[1]:  # noqa: PLR2004
        return None
    queries, keys = query.abs().amax(dim=-2), key.abs().amax(dim=-2)
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    largest: Tensor = (grouped * keys.unsqueeze(2)).max()
    return largest


def _source(nodes: list[OpNode], origin: Origin) -> OpNode | None:
    """The operation behind copies of a tensor; None if it is none of the segment."""
    while origin.node >= 0 and nodes[origin.node].op in COPIES:
        origin = nodes[origin.node].inputs[0]
    return nodes[origin.node] if origin.node >= 0 else None


def _is_weight(nodes: list[OpNode], origin: Origin) -> bool:
    """Whether a tensor is a parameter, picked or changed by itself."""
    while origin.node >= 0:
        source = nodes[origin.node]
        if len(source.inputs) != 1 and source.op not in _PICKS:
            return False
        origin = source.inputs[0]
    return origin.node == WEIGHT
