"""What operations require of the unknowns, collected while a flow is interpreted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch

from precheck.cure.scales.forms import Epsilon, Equation, Form, Reason
from precheck.cure.scales.tensor_scale import (
    CONSTANT,
    TensorScale,
    laned,
    of_rank,
    uniform_scale,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from precheck.cure.scales.tensor_scale import Origin, Partitions
    from precheck.measure.trace.flow import FlowOp

MOST_CLASSES = 16
"""Of the positions of a parameter. Code that takes a tensor apart further than into queries, keys,
values and the halves of their rotations loops over its channels."""

MOST_EXPERTS = 1024
"""Of one layer, with an unknown each."""


@dataclass(slots=True, kw_only=True)
class Constraints:
    """Equations, and how parameters have to be divided into parts with unknowns of their own."""

    op: FlowOp
    """The operation that is being interpreted."""
    partitions: Partitions
    """How parameters are divided in this pass."""
    equations: dict[tuple[Form, Reason, str, str], Equation] = field(default_factory=dict)
    """By what tells them apart."""
    requested: Partitions = field(default_factory=dict)
    """Finer divisions for the next pass."""

    @property
    def source(self) -> str:
        """Base name of the file and line."""
        return f"{PurePath(self.op.filename).name}:{self.op.line}"

    def require_zero(self, form: Form, reason: Reason, epsilon: Epsilon | None = None) -> None:
        """The operation requires the form to be 0."""
        if form:
            equation = Equation(
                form=form,
                reason=reason,
                module=self.op.module,
                op=self.op.name,
                source=self.source,
                epsilon=epsilon,
            )
            key = (form, reason, equation.module, equation.source)
            self.equations.setdefault(key, equation)

    def require_epsilon(self, form: Form, value: float) -> None:
        """The epsilon that the operation adds has to be scaled like its variance.

        Args:
            form: of the variance, minus that of the epsilon.
            value: of the epsilon.
        """
        self.require_zero(form, Reason.EPSILON, Epsilon(key=self.op.key, value=value))

    def require_equal(self, first: Form, second: Form) -> None:
        """Two tensors need the same scale; next to a constant that is no scale at all."""
        is_constant = not first or not second
        self.require_zero(first - second, Reason.CONSTANT if is_constant else Reason.EQUAL)

    def require_all_zero(self, scale: TensorScale, reason: Reason) -> None:
        """No lane of the tensor may be scaled."""
        for form in scale.forms:
            self.require_zero(form, reason)

    def require_unscaled(self, scales: Iterable[TensorScale]) -> TensorScale:
        """The operation's inputs must not be scaled; then its result is not.

        So it is with whatever is not homogeneous (a silu, a softmax), and with operations that no
        rule knows.
        """
        for scale in scales:
            self.require_all_zero(scale, Reason.NOT_LINEAR)
        return CONSTANT

    def common_form(self, scale: TensorScale) -> Form:
        """The one form of a tensor; requires all its lanes to have the same."""
        for form in scale.forms[1:]:
            self.require_zero(form - scale.forms[0], Reason.EQUAL)
        return scale.forms[0]

    def merged(self, scale: TensorScale) -> TensorScale:
        """The scale with its lanes merged into one; requires them to be equal."""
        return uniform_scale(self.common_form(scale), is_zero=scale.is_zero)

    def merged_along(self, scale: TensorScale, dims: Iterable[int], *, rank: int) -> TensorScale:
        """The scale with what lies along some dimensions merged; requires that to be equal.

        Args:
            scale: of a tensor with ``rank`` dimensions.
            dims: counted from the end.
            rank: of the tensor.
        """
        full_rank = rank + (scale.groups is not None)
        lanes = of_rank(scale.lanes, full_rank)
        origins = scale.origins
        for dim in dims:
            first = lanes.narrow(dim, 0, 1)
            if lanes.shape[dim] > 1:
                self._require_equal_lanes(scale, lanes, first)
            lanes = first
            origins = tuple(
                origin for origin in origins if of_rank(origin.positions, full_rank).shape[dim] == 1
            )
        return replace(
            laned(lanes, scale.forms),
            origins=origins,
            groups=scale.groups,
            is_zero=scale.is_zero,
        ).without_idle_groups(rank)

    def ungrouped(self, scale: TensorScale, *, rank: int) -> TensorScale:
        """The scale of rows that are no longer sorted by expert; requires experts to be equal."""
        if scale.groups is None:
            return scale
        merged = self.merged_along(scale, [-rank - 1], rank=rank)
        return replace(merged, groups=None)

    def _require_equal_lanes(self, scale: TensorScale, first: Tensor, second: Tensor) -> None:
        count = len(scale.forms)
        for code in torch.unique(first * count + second).tolist():
            self.require_equal(scale.forms[code // count], scale.forms[code % count])

    def divide(self, origin: Origin, kinds: Tensor, *, most: int = MOST_CLASSES) -> None:
        """The origin's parameter needs an unknown for each kind of position.

        Args:
            origin: positions of a parameter.
            kinds: a number for each; int64, of a shape that can be broadcast with the positions'.
            most: classes that a dimension of a parameter may have; more are not made.
        """
        positions, kinds = torch.broadcast_tensors(origin.positions, kinds)
        by_position = torch.full((origin.size,), -1, dtype=torch.int64)
        by_position.scatter_reduce_(0, positions.flatten(), kinds.flatten(), "amax")
        place = (origin.parameter, origin.dim)
        before = self.requested.get(place, self.partitions.get(place))
        if before is None:
            before = torch.zeros_like(by_position)
        codes = before * (int(by_position.max()) + 2) + by_position + 1
        present, classes = torch.unique(codes, return_inverse=True)
        if int(before.max()) + 1 < len(present) <= most:
            self.requested[place] = classes

    def divide_like(self, scale: TensorScale, other: TensorScale) -> None:
        """What ``scale`` comes from is divided as ``other`` is, with which it is combined."""
        if not other.is_uniform and other.groups is None:
            for origin in scale.origins:
                self.divide(origin, other.lanes)
