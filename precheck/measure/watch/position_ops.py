"""Operations in 16 bits that positions go through: their numbers, their angles, their biases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.measure.watch.op_kinds import CASTS, FUSED_ATTENTION
from precheck.records.outcomes.positions import PositionKind, PositionRounding

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.watch.segment import OpNode

_HALVES = frozenset({torch.float16, torch.bfloat16})
_ANGLES = frozenset({"aten.cos", "aten.sin"})
_SUMS = frozenset({"aten.add", "aten.add_", "aten.baddbmm"})
_FEWEST = 2
"""Dimensions of a bias, and operands of a sum."""


class PositionOps:
    """The coarsest operand of each kind and source line.

    Recognised by what an operation computes and where its operands come from, not by names.

    Args:
        num_columns: tokens of the batch.
    """

    def __init__(self, num_columns: int) -> None:
        self.found: dict[tuple[PositionKind, str], PositionRounding] = {}
        self._num_columns = num_columns

    def see(self, node: OpNode, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        """Records an operation if a position goes through it in 16 bits."""
        if node.op in _ANGLES and tensors[0].dtype in _HALVES:
            self._add(PositionKind.ANGLE, node, tensors[0])
        elif FUSED_ATTENTION in node.op:
            for bias in tensors[3:4]:
                self._add_bias(node, bias)
        elif node.op in _SUMS and self._are_scores(outputs[0]):
            for tensor in tensors:
                if tensor.shape[-1:] == outputs[0].shape[-1:]:
                    self._add_bias(node, tensor, of=outputs[0])
        elif outputs[0].dtype in _HALVES and self._counts(node, tensors, outputs[0]):
            self._add(PositionKind.NUMBER, node, outputs[0])

    def _are_scores(self, output: Tensor) -> bool:
        shape = output.shape
        return (
            output.dim() > _FEWEST
            and shape[-2] == self._num_columns
            and shape[-1] >= self._num_columns
        )

    def _add_bias(self, node: OpNode, bias: Tensor, *, of: Tensor | None = None) -> None:
        """Adds what changes by the same number from key to key: a distance, and no mask."""
        if bias.dtype not in _HALVES or bias.dim() < _FEWEST or (of is not None and bias is of):
            return
        row = bias.reshape(-1, bias.shape[-1])[-1].float()
        numbers = row[row > torch.finfo(bias.dtype).min / 2]
        if numbers.numel() < self._num_columns // 2 or not _is_straight(numbers):
            return
        values = bias.float()
        self._add(
            PositionKind.BIAS,
            node,
            values.where(values > torch.finfo(bias.dtype).min / 2, 0),
            bias.dtype,
        )

    def _counts(self, node: OpNode, tensors: list[Tensor], output: Tensor) -> bool:
        """Whether the output is the numbers of positions: 0, 1, 2 and so on, made or cast."""
        if node.op != "aten.arange" and not (
            node.op in CASTS and not tensors[0].is_floating_point()
        ):
            return False
        counted = output if node.op == "aten.arange" else tensors[0]
        last = counted.reshape(-1, counted.shape[-1])[-1] if counted.dim() else counted
        if last.numel() < self._num_columns or last.dtype is torch.bool:
            return False
        if node.op == "aten.arange":
            return True
        return bool((last[1:] - last[:-1] == 1).all())

    def _add(
        self, kind: PositionKind, node: OpNode, operand: Tensor, dtype: torch.dtype | None = None
    ) -> None:
        abs_max = float(operand.abs().max()) if operand.numel() else 0.0
        if not 0 < abs_max < math.inf:
            return
        step = 2.0 ** math.floor(math.log2(abs_max)) * torch.finfo(dtype or operand.dtype).eps
        key = (kind, node.source)
        known = self.found.get(key)
        if known is not None and known.abs_max >= abs_max:
            return
        self.found[key] = PositionRounding(
            kind=kind,
            module=node.module if known is None else known.module,
            op=node.op,
            source=node.source,
            source_file=node.source_file,
            abs_max=abs_max,
            step=step,
        )


def _is_straight(row: Tensor) -> bool:
    """Whether numbers lie on a straight line that is not level, up to their rounding."""
    first, last = float(row[0]), float(row[-1])
    if first == last:
        return False
    line = torch.linspace(first, last, len(row), device=row.device)
    return bool((row - line).abs().max() <= 0.02 * abs(last - first))
