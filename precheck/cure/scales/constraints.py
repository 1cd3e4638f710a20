"""What operations require of the unknowns, collected while a flow is interpreted."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Equation, Form, Reason
from precheck.cure.scales.tensor_scale import CONSTANT, Partition, TensorScale, uniform_scale

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.cure.scales.flow import FlowOp
    from precheck.cure.scales.tensor_scale import ParameterOffset, Partitions


@dataclass(slots=True, kw_only=True)
class Constraints:
    """Equations, and boundaries at which parameters need unknowns of their own."""

    op: FlowOp
    """The operation that is being interpreted."""
    partitions: Partitions
    """How parameters are divided in this pass."""
    equations: list[Equation] = field(default_factory=list)
    requested: Partitions = field(default_factory=dict)
    """Boundaries for the next pass."""

    @property
    def source(self) -> str:
        """Base name of the file and line."""
        return f"{PurePath(self.op.filename).name}:{self.op.line}"

    def require_zero(self, form: Form, reason: Reason) -> None:
        """The operation requires the form to be 0."""
        if form:
            self.equations.append(
                Equation(
                    form=form,
                    reason=reason,
                    module=self.op.module,
                    op=self.op.name,
                    source=self.source,
                )
            )

    def require_equal(self, first: Form, second: Form) -> None:
        """Two tensors need the same scale; next to a constant that is no scale at all."""
        is_constant = not first or not second
        self.require_zero(first - second, Reason.CONSTANT if is_constant else Reason.EQUAL)

    def require_unscaled(self, scales: Iterable[TensorScale]) -> TensorScale:
        """The operation's inputs must not be scaled; then its result is not.

        So it is with whatever is not homogeneous (a silu, a softmax), and with operations that no
        rule knows.
        """
        for scale in scales:
            self.require_zero(self.common_form(scale), Reason.NOT_LINEAR)
        return CONSTANT

    def common_form(self, scale: TensorScale) -> Form:
        """The one form of a tensor; requires all its ranges to have the same."""
        for part in scale.ranges[1:]:
            self.require_zero(part.form - scale.form, Reason.EQUAL)
        return scale.form

    def merged(self, scale: TensorScale) -> TensorScale:
        """The scale with its ranges merged into one; requires them to be equal."""
        return uniform_scale(self.common_form(scale), is_zero=scale.is_zero)

    def along_last(self, scale: TensorScale) -> TensorScale:
        """The scale with ranges along the last dimension only; others are merged."""
        return scale if len(scale.ranges) == 1 or scale.dim == -1 else self.merged(scale)

    def request_boundary(self, origin: ParameterOffset, offset: int) -> None:
        """The parameter needs a boundary ``offset`` positions after ``origin``.

        A parameter is divided along one dimension only: a boundary along another is dropped.
        """
        current = self.partitions.get(origin.parameter)
        if current is None or current.dim == origin.dim:
            requested = self.requested.get(origin.parameter)
            boundaries = requested.boundaries if requested else frozenset()
            self.requested[origin.parameter] = Partition(
                origin.dim, boundaries | {origin.start + offset}
            )
