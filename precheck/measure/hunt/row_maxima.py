"""Watches some operations of a forward, and nothing else: the largest magnitude for each row.

The operations are the watcher's (``precheck.measure.watch.ops``): the same names, counted in the
same way. What is left out is what a search does not read, which makes it fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precheck.measure.watch.op_kinds import CASTS, MASK_SENTINEL, op_kind
from precheck.measure.watch.segment import match_key, next_ordinal
from precheck.measure.watch.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import Tensor
    from torch._ops import OpOverload

    from precheck.measure.watch.module_stack import ModuleStack
    from precheck.measure.watch.peaks import OpKey


class AllSeenError(Exception):
    """Every operation that was asked for has run: the rest of the forward is not needed."""


class RowMaxima(TorchDispatchMode):
    """The largest magnitude of operations for each row of a batch.

    Args:
        stack: which module is running.
        wanted: the operations, numbered from 0.
        num_rows: of the batch.
        mixed: numbers of those whose elements do not tell which row they belong to.
        by_lane: numbers of those whose largest magnitude along the last dimension is wanted too.
        kept: number of the one whose result is wanted itself.
    """

    def __init__(
        self,
        *,
        stack: ModuleStack,
        wanted: Mapping[OpKey, int],
        num_rows: int,
        mixed: Collection[int] = (),
        by_lane: Collection[int] = (),
        kept: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.maxima: dict[int, Tensor] = {}
        """``(rows,)`` float32, by number."""
        self.lanes: dict[int, Tensor] = {}
        """``(rows, lanes)`` float32, by number."""
        self.result: Tensor | None = None
        self.operands: list[Tensor] = []
        """What the operation that is kept read."""
        self._stack = stack
        self._wanted = wanted
        self._num_rows = num_rows
        self._mixed, self._by_lane, self._kept = mixed, by_lane, kept
        self._ordinals: dict[tuple[str, str], int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the wrapper that keeps the compiler out would cost more than the handler itself."""
        return False

    def __torch_dispatch__(
        self, func: OpOverload, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        # not right after the last one: autograd has yet to note where its result came from
        if len(self.maxima) == len(self._wanted):
            raise AllSeenError
        output = func(*args, **(kwargs or {}))
        kind = op_kind(func)
        if kind.is_view or kind.name in CASTS:
            return output
        result = output if isinstance(output, torch.Tensor) else next(tensors_in(output), None)
        if result is None:
            return output
        module = self._stack.names[-1]
        ordinal = next_ordinal(self._ordinals, module, kind.name)
        number = self._wanted.get(match_key(module, kind.name, ordinal))
        if number is not None and result.is_floating_point() and result.numel():
            self._record(number, result)
            if number == self._kept:
                self.result, self.operands = result, list(tensors_in(args))
        return output

    def _record(self, number: int, result: Tensor) -> None:
        values = result.detach()
        self.maxima[number] = (
            _largest(values.reshape(1, -1)).expand(self._num_rows)
            if number in self._mixed or values.shape[0] % self._num_rows
            else _largest(values.reshape(self._num_rows, -1))
        )
        if number in self._by_lane and values.shape[0] % self._num_rows == 0:
            by_row = values.reshape(self._num_rows, -1, values.shape[-1])
            self.lanes[number] = _magnitudes(by_row)


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude of each row that is no mask; infinite where one is not finite."""
    found = _magnitudes(rows)
    if bool((found >= -MASK_SENTINEL).any()):
        found = _magnitudes(rows.masked_fill(rows <= MASK_SENTINEL, 0.0))
    return found.nan_to_num(torch.inf, torch.inf)


def _magnitudes(rows: Tensor) -> Tensor:
    """Largest magnitudes along dimension 1; NaN where there is one.

    One call, ``vector_norm`` or ``aminmax`` with a dimension, takes eight times as long on a CPU.
    """
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))
