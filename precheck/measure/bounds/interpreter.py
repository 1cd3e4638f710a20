"""Goes through a traced forward once, and bounds the result of every operation.

``precheck.measure.bounds`` in the order to read: ``forms`` (what is known of a tensor),
``rounding``, ``matrices``, ``patterns``, ``step`` (one operation), ``norms``, ``products``,
``pairs``, ``attention``, ``elementwise``, ``functions``, ``reductions``, ``moves``, ``rules``,
``rounded``, ``shared``.

Each operation is taken by itself: given inputs that are finite in their dtype, how large can its
result become. So a bound that does not fit makes its operation open, and what follows goes on from
the largest finite value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.bounds.forms import Known, Masked, constant
from precheck.measure.bounds.pairs import Refinement
from precheck.measure.bounds.rounded import rounded
from precheck.measure.bounds.rounding import largest
from precheck.measure.bounds.rules import num_roundings, rule_of
from precheck.measure.bounds.shared import Balls, Result, SharedResults
from precheck.measure.bounds.step import Step, finite
from precheck.measure.trace.flow import Value, leaves
from precheck.measure.watch.op_kinds import MOVES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from precheck.measure.trace.flow import Flow, FlowOp

_MOST_NAMED = 1 << 16
"""Elements of a tensor that are told apart: angles are few."""
_FILLS = frozenset(
    f"aten.{name}"
    for name in (
        "full",
        "new_full",
        "full_like",
        "zeros",
        "zeros_like",
        "new_zeros",
        "ones",
        "ones_like",
        "new_ones",
        "scalar_tensor",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoundedOp:
    """An operation and what its result does not exceed."""

    op: FlowOp
    bound: float
    """Infinite where nothing is known."""
    limit: float
    """The largest finite value of its dtype."""

    @property
    def is_proved(self) -> bool:
        """Whether it cannot overflow, given finite inputs."""
        return self.bound <= self.limit


class Interpreter:
    """Bounds the operations of a flow in their order, as far as parameters are at hand.

    Args:
        flow: of a forward in the run's dtype.
        grows: of each tensor, the dimensions that are longer for a longer text.
        varies: operations, by their place, that take other rows of their input then.
        numbers_of: the values of a parameter or a buffer, by name; None where they are not at hand.
        shared: what runs with the same weights have in common.
        refinement: time for better bounds where one does not fit.
    """

    def __init__(
        self,
        flow: Flow,
        *,
        grows: Mapping[Value, frozenset[int]],
        varies: frozenset[int],
        numbers_of: Callable[[str], Tensor | None],
        shared: SharedResults | None = None,
        refinement: Refinement | None = None,
    ) -> None:
        self.bounded: list[BoundedOp] = []
        self._flow = flow
        self._grows = grows
        self._varies = varies
        self._numbers_of = numbers_of
        self._shared = shared or SharedResults()
        self._refinement = refinement or Refinement()
        self._balls = Balls()
        self._known: dict[Value, Known] = {}
        self._place = 0
        self._last_use = {value: place for place, op in enumerate(flow.ops) for value in op.inputs}

    def assume(self, value: Value, known: Known) -> None:
        """Takes for granted what is known of a tensor that no operation of the flow makes."""
        self._known[value] = known

    def advance(self, place: int | None = None) -> None:
        """Bounds all operations before ``place``; by default, all that are left."""
        end = len(self._flow.ops) if place is None else place
        with torch.no_grad():
            while self._place < end:
                self._take(self._flow.ops[self._place])
                self._place += 1

    def _take(self, op: FlowOp) -> None:
        read = {value: self.known_of(value) for value in op.inputs if value.is_number}
        written = self._written(op)
        for place, value in enumerate(op.outputs):
            if value.is_number:
                self._known[value] = self._result(op, read, value, place)
        if written is not None:
            self._forget_views(written, op)
        for value in (*op.inputs, *op.outputs):
            if self._last_use.get(value, -1) <= self._place:
                self._known.pop(value, None)

    def _result(self, op: FlowOp, read: dict[Value, Known], value: Value, place: int) -> Known:
        step = self._step(op, read, value, place)
        folded = self._folded(step)
        if folded is None:
            result = self._shared.result(step, self._balls, self._outcome)
        else:
            result = Result(folded, _largest_of(step, folded))
        if not place and _computes(op, value):
            self.bounded.append(BoundedOp(op=op, bound=result.bound, limit=largest(value.dtype)))
        return result.known

    def _step(self, op: FlowOp, read: dict[Value, Known], value: Value, place: int) -> Step:
        def put(leaf: Any) -> Any:
            if isinstance(leaf, list | tuple):
                return type(leaf)(put(each) for each in leaf)
            return read.get(leaf, leaf) if isinstance(leaf, Value) else leaf

        first = next(iter(read), None)
        return Step(
            op=op,
            args=tuple(put(arg) for arg in op.args),
            kwargs={name: put(arg) for name, arg in op.kwargs.items()},
            output=value,
            grows=frozenset() if first is None else self._grows.get(first, frozenset()),
            takes_some_rows=self._place in self._varies,
            place=place,
            refinement=self._refinement,
        )

    def _folded(self, step: Step) -> Known | None:
        """A result that no input changes, computed as the run does."""
        if step.op.name in _FILLS:
            return constant(_replaced(step, _bounds_in).to(step.dtype))
        if not step.known or step.takes_some_rows:
            return None
        if any(one.numbers is None for one in step.known):
            return None
        if any(isinstance(leaf, Value) for leaf in leaves((step.args, step.kwargs))):
            return None
        numbers = _replaced(step, lambda leaf: leaf.numbers if isinstance(leaf, Known) else leaf)
        made = constant(numbers)
        return made if made.shape == step.shape else None

    def _outcome(self, step: Step) -> Result:
        known = self._by_rule(step)
        return Result(self._capped(known, step.output), _largest_of(step, known))

    def _by_rule(self, step: Step) -> Known:
        rule = rule_of(step)
        known = None if rule is None else rule(step)
        if known is None or not _may_read_masks(step):
            known = step.unknown()
        known = known.expanded(step.shape)
        dtype = step.dtype
        if dtype.is_floating_point:
            known = rounded(known, dtype=dtype, times=num_roundings(step))
        return replace(known, magnitudes=finite(known.bound))

    def _capped(self, known: Known, value: Value) -> Known:
        """Given that the result is finite, it is within its dtype."""
        if known.numbers is not None:
            return known
        if value.dtype.is_floating_point:
            known = replace(known, magnitudes=known.bound.clamp_max(largest(value.dtype)))
        if known.form is None and known.bound.numel() <= _MOST_NAMED:
            known = replace(known, form=self._shared.named(known.shape))
        return known

    def known_of(self, value: Value) -> Known:
        """What is known of a tensor, as long as an operation that is left reads it."""
        if value in self._known:
            return self._known[value]
        numbers = value.constant
        name = value.parameter or value.buffer
        if name is not None:
            numbers = self._numbers_of(name)
        if numbers is not None and numbers.shape == torch.Size(value.shape):
            known = constant(numbers)
        else:
            known = Known(magnitudes=torch.full(value.shape, torch.inf, dtype=torch.float64))
        known = self._capped(known, value)
        self._known[value] = known
        return known

    def _written(self, op: FlowOp) -> Value | None:
        """The tensor that an operation writes into."""
        inputs = {id(value) for value in op.inputs}
        return next((value for value in op.outputs if id(value) in inputs), None)

    def _forget_views(self, written: Value, op: FlowOp) -> None:
        """What shares memory with a tensor that was written into holds something else now."""
        for value in self._known:
            if value.storage == written.storage and value not in op.outputs:
                bound = torch.full(value.shape, largest(value.dtype), dtype=torch.float64)
                self._known[value] = Known(magnitudes=bound)


def _largest_of(step: Step, known: Known) -> float:
    """The largest bound of an element, of an operation that computes any."""
    is_computed = math.prod(known.shape) > 0 and _computes(step.op, step.output)
    return float(known.bound.max()) if is_computed else 0.0


def _computes(op: FlowOp, value: Value) -> bool:
    """Whether an operation computes floating-point values: moves and constants do not."""
    is_move = op.is_view or op.name in MOVES or op.name in _FILLS
    return value.dtype.is_floating_point and not is_move


def _bounds_in(leaf: Any) -> Any:
    return leaf.bound if isinstance(leaf, Known) else leaf


def _replaced(step: Step, put: Callable[[Any], Any]) -> Tensor:
    """The operation itself over numbers, in their own dtypes."""
    args = tuple(
        type(arg)(put(leaf) for leaf in arg) if isinstance(arg, list | tuple) else put(arg)
        for arg in step.args
    )
    kwargs = {
        name: put(arg)
        for name, arg in step.kwargs.items()
        if name not in {"device", "layout", "pin_memory", "memory_format"}
    }
    made: Any = step.op.func(*args, **kwargs)
    result: Tensor = made[step.place] if isinstance(made, list | tuple) else made
    return result


_READ_MASKS = frozenset(
    [
        "add",
        "add_",
        "sub",
        "mul",
        "mul_",
        "_to_copy",
        "where",
        "masked_fill",
        "masked_fill_",
        "_softmax",
        "_safe_softmax",
        "softmax",
        "cat",
        "copy_",
        "index",
    ]
)


def _may_read_masks(step: Step) -> bool:
    """Whether masks among its inputs are taken for masks by its rule."""
    if not any(isinstance(known.form, Masked) for known in step.known):
        return True
    name = step.op.name.removeprefix("aten.")
    return step.op.is_view or step.op.name in MOVES or name in _READ_MASKS or "attention" in name
