"""The equations of a flow: interprets it with linear forms in place of numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.cure.scales.constraints import Constraints
from precheck.cure.scales.forms import UNSCALED, Form, Kind, Reason, ScaledResult, Scales
from precheck.cure.scales.op_context import OpContext
from precheck.cure.scales.rules import compare, result_scales
from precheck.cure.scales.tensor_scale import CONSTANT, ZEROS, of_rank, parameter_scale
from precheck.measure.watch.op_kinds import MOVES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from precheck.cure.scales.forms import Unknown
    from precheck.cure.scales.tensor_scale import Partitions, TensorScale
    from precheck.measure.trace.flow import Flow, FlowOp, Value

_MOST_PASSES = 12
"""A boundary in one parameter leads to others: in its bias, then in the next layer's weights."""

_AFTER_EPSILON = frozenset({"aten.sqrt", "aten.rsqrt", "aten.pow", "aten.reciprocal", "aten.div"})
"""What a norm does with its variance after it has added an epsilon."""


def find_scales(
    flow: Flow,
    *,
    settings: Mapping[int, Form],
    dtype: torch.dtype,
) -> Scales:
    """The equations of a flow, and the scale of each result that is stored in ``dtype``.

    Args:
        flow: a forward.
        settings: how the scalar arguments of operations follow from the config, by index of the
            operation.
        dtype: results in this dtype are the ones that may leave its range.
    """
    partitions: Partitions = {}
    for _ in range(_MOST_PASSES):
        interpreter = _Interpreter(flow, settings, partitions, dtype)
        interpreter.interpret()
        if not interpreter.constraints.requested:
            break
        partitions = partitions | interpreter.constraints.requested
    interpreter.pin_weights_with_two_uses()
    return Scales(
        equations=tuple(interpreter.constraints.equations.values()),
        results=tuple(interpreter.results),
        partitions=interpreter.constraints.partitions,
    )


class _Interpreter:
    """One pass over a flow."""

    def __init__(
        self,
        flow: Flow,
        settings: Mapping[int, Form],
        partitions: Partitions,
        dtype: torch.dtype,
    ) -> None:
        self.constraints = Constraints(op=flow.ops[0], partitions=partitions)
        self.results: list[ScaledResult] = []
        self._flow = flow
        self._number_forms = settings
        self._dtype = dtype
        self._scales: dict[Value, TensorScale] = {}
        self._storages: dict[int, list[Value]] = {}
        self._measured: dict[Value, tuple[tuple[str, str, int], TensorScale]] = {}
        """The operation whose measured peaks are a tensor's, the last one before casts and views;
        and what it gave."""
        self._read_by_roots = {
            value for op in flow.ops if op.name in _AFTER_EPSILON for value in op.inputs[-1:]
        }

    def interpret(self) -> None:
        """Applies the rule of every operation, in order."""
        for index, op in enumerate(self._flow.ops):
            self.constraints.op = op
            context = OpContext(
                op=op,
                constraints=self.constraints,
                number_form=self._number_forms.get(index, UNSCALED),
                is_before_root=any(output in self._read_by_roots for output in op.outputs),
            )
            inputs = [value for value in op.inputs if value.is_number]
            outputs = [value for value in op.outputs if value.is_number]
            scales = [self._scale(value) for value in inputs]
            if not outputs:
                compare(context, scales, list(op.outputs))
                continue
            output_scales = result_scales(context, scales, inputs, outputs)
            for output, scale in zip(outputs, output_scales, strict=True):
                self._set_scale(op, output, scale, inputs)
        for result in self._flow.results:
            logits = self.constraints.common_form(self._scale(result))
            self.constraints.require_zero(logits, Reason.RESULT)

    def pin_weights_with_two_uses(self) -> None:
        """A weight that is read both as ``w`` and as ``c + w`` cannot be scaled for both."""
        unknowns = set(self._unknowns())
        plain = {unknown.name for unknown in unknowns if unknown.kind is Kind.WEIGHT}
        shifts: dict[str, set[float]] = {}
        for unknown in unknowns:
            if unknown.kind is Kind.SHIFTED_WEIGHT:
                shifts.setdefault(unknown.name, set()).add(unknown.shift)
        for unknown in unknowns:
            name = unknown.name
            if name in shifts and (name in plain or len(shifts[name]) > 1):
                self.constraints.require_zero(Form.of(unknown), Reason.CONSTANT)

    def _unknowns(self) -> Iterator[Unknown]:
        forms = [equation.form for equation in self.constraints.equations.values()]
        forms += [result.form for result in self.results]
        return (unknown for form in forms for unknown, _ in form.terms)

    def _scale(self, value: Value) -> TensorScale:
        if value not in self._scales:
            is_parameter = value.parameter is not None
            scale = (
                parameter_scale(value, self.constraints.partitions) if is_parameter else CONSTANT
            )
            self._scales[value] = scale
            self._storages.setdefault(value.storage, []).append(value)
        return self._scales[value]

    def _set_scale(
        self, op: FlowOp, output: Value, scale: TensorScale, inputs: Sequence[Value]
    ) -> None:
        if not op.is_view and any(output is value for value in inputs):
            scale = self._written_in_place(output, scale)
        self._scales[output] = scale
        self._storages.setdefault(output.storage, []).append(output)
        is_cast = op.name == "aten._to_copy"
        if op.is_view or is_cast:
            source = inputs[0] if inputs else None
            if source in self._measured:
                self._measured[output] = self._measured[source]
        elif op.name not in MOVES:
            rank = len(output.shape) + (scale.groups is not None)
            lanes = of_rank(scale.lanes, rank)
            self._measured[output] = (op.key, replace(scale, lanes=lanes))
        if output.dtype == self._dtype and not op.is_view and output in self._measured:
            self._add_results(scale, *self._measured[output])

    def _add_results(
        self, scale: TensorScale, key: tuple[str, str, int], measured: TensorScale
    ) -> None:
        """The result of an operation, for each of its lanes that has ended up in a tensor."""
        for lane, form in enumerate(measured.forms):
            if form in scale.forms:
                self.results.append(
                    ScaledResult(
                        form=form,
                        key=key,
                        source=self.constraints.source,
                        elements=None if measured.is_uniform else measured.lanes == lane,
                    )
                )

    def _written_in_place(self, output: Value, scale: TensorScale) -> TensorScale:
        """The scale of memory that is partly overwritten: of what is new and of what stays.

        Every view of that memory has it from then on.
        """
        before = self._scales.get(output, ZEROS)
        if all(value is output for value in self._storages.get(output.storage, ())):
            return scale  # nothing else shows that memory
        if not (before.is_zero or scale.is_zero):
            new, old = map(self.constraints.common_form, (scale, before))
            self.constraints.require_equal(new, old)
        merged = self.constraints.merged(before if scale.is_zero else scale)
        for view in self._storages.get(output.storage, ()):
            self._scales[view] = merged
        return merged
