"""Which powers of two a model can be multiplied by without changing what it computes.

Idea. Every parameter, and every number of the config that reaches an operation, gets an unknown
power of two. Along the data flow each tensor is scaled by a sum of them: a product adds those of
its factors, a square doubles, a norm takes off what it is given. Where tensors are added theirs
have to be equal; what a softmax or a silu reads must not be scaled at all; nor may the logits. The
solutions of these equations are all the rescalings that are exact, whatever the architecture and
whatever its modules are called.

Parts of a parameter have unknowns of their own where the model takes its result apart (gate and up
in one matrix). Where those are is found by interpreting the flow again, until nothing new is cut.

What it cannot see: code that depends on numbers, and what the forward of text does not pass
(towers for images). An operation it does not know must not be given anything scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.cure.scales.forms import NOTHING, Form, Kind, Reason, Scaled, Scales
from precheck.cure.scales.rules import Step
from precheck.cure.scales.tensor_scale import CONSTANT, ZERO, Cuts, Ledger, Scale, of_parameter
from precheck.measure.watch.op_kinds import MOVES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from precheck.cure.scales.flow import Flow, FlowOp, Value

_MOST_PASSES = 12
"""A parameter that is cut is cut again at most a few times: its bias, then the next layer's."""

_OF_NORMS = frozenset({"aten.sqrt", "aten.rsqrt", "aten.pow", "aten.reciprocal", "aten.div"})
"""What comes after an epsilon."""


def find_scales(
    flow: Flow,
    *,
    settings: Mapping[int, Form],
    dtype: torch.dtype,
) -> Scales:
    """The equations of a flow, and how each stored result is scaled.

    Args:
        flow: a forward.
        settings: how the numbers of operations follow from the config, by index of the operation.
        dtype: results in this dtype are the ones that may leave its range.
    """
    cuts: Cuts = {}
    for _ in range(_MOST_PASSES):
        found = _Interpreter(flow, settings, cuts, dtype)
        found.go()
        if not found.ledger.more_cuts:
            break
        cuts = _with(cuts, found.ledger.more_cuts)
    found.pin_what_is_used_twice()
    return Scales(equations=tuple(found.ledger.equations), scaled=tuple(found.scaled))


def _with(cuts: Cuts, more: Cuts) -> Cuts:
    both = dict(cuts)
    for name, (dim, places) in more.items():
        _, known = both.get(name, (dim, frozenset()))
        both[name] = (dim, known | places)
    return both


class _Interpreter:
    """One pass over a flow."""

    def __init__(
        self,
        flow: Flow,
        settings: Mapping[int, Form],
        cuts: Cuts,
        dtype: torch.dtype,
    ) -> None:
        self.ledger = Ledger(op=flow.ops[0], cuts=cuts)
        self.scaled: list[Scaled] = []
        self._flow = flow
        self._number_forms = settings
        self._dtype = dtype
        self._scales: dict[Value, Scale] = {}
        self._storages: dict[int, list[Value]] = {}
        self._keys: dict[Value, tuple[str, str, int]] = {}
        """What measured a tensor: the operation that made its numbers, before casts and moves."""
        self._norms_read = {
            value for op in flow.ops if op.name in _OF_NORMS for value in op.inputs[-1:]
        }

    def go(self) -> None:
        """Interprets every operation."""
        for index, op in enumerate(self._flow.ops):
            self.ledger.op = op
            step = Step(
                op=op,
                ledger=self.ledger,
                number_form=self._number_forms.get(index, NOTHING),
                is_before_root=any(each in self._norms_read for each in op.outputs),
            )
            given = [each for each in op.inputs if each.is_number]
            scales = [self._scale(each) for each in given]
            made = [each for each in op.outputs if each.is_number]
            if not made:
                step.compared(scales, list(op.outputs))
                continue
            for output, scale in zip(made, step.results(scales, given, made), strict=True):
                self._set(op, output, scale, given)
        self.ledger.demand(self.ledger.one(self._scale(self._flow.result)), Reason.RESULT)

    def pin_what_is_used_twice(self) -> None:
        """A weight that is used as it is and with a constant added cannot be both."""
        forms = (*(e.form for e in self.ledger.equations), *(e.form for e in self.scaled))
        known = {unknown for form in forms for unknown, _ in form.terms}
        plain = {each.name for each in known if each.kind is Kind.WEIGHT}
        shifts: dict[str, set[float]] = {}
        for each in known:
            if each.kind is Kind.SHIFTED_WEIGHT:
                shifts.setdefault(each.name, set()).add(each.shift)
        for each in known:
            if each.name in shifts and (each.name in plain or len(shifts[each.name]) > 1):
                self.ledger.demand(Form.of(each), Reason.CONSTANT)

    def _scale(self, value: Value) -> Scale:
        known = self._scales.get(value)
        if known is not None:
            return known
        is_parameter = value.parameter is not None
        scale = of_parameter(value, self.ledger.cuts) if is_parameter else CONSTANT
        self._scales[value] = scale
        self._storages.setdefault(value.storage, []).append(value)
        return scale

    def _set(self, op: FlowOp, output: Value, scale: Scale, given: Sequence[Value]) -> None:
        if not op.is_view and any(output is each for each in given):
            scale = self._written(output, scale)
        self._scales[output] = scale
        self._storages.setdefault(output.storage, []).append(output)
        is_move = op.is_view or op.name in MOVES or op.name == "aten._to_copy"
        source = next((self._keys[each] for each in given if each in self._keys), None)
        if not is_move:
            self._keys[output] = op.key
        elif source is not None:
            self._keys[output] = source
        if output.dtype == self._dtype and not op.is_view and output in self._keys:
            self.scaled += [
                Scaled(form=form, key=self._keys[output], source=self.ledger.source)
                for form in {each.form for each in scale.lanes}
            ]

    def _written(self, output: Value, scale: Scale) -> Scale:
        """All views of the memory see what was written; what was there before has to be alike."""
        before = self._scales.get(output, ZERO)
        if not (before.is_zero or scale.is_zero):
            self.ledger.alike(self.ledger.one(scale), self.ledger.one(before))
        kept = self.ledger.merged(before if scale.is_zero else scale)
        for view in self._storages.get(output.storage, ()):
            self._scales[view] = kept
        return kept
