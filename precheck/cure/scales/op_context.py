"""What the rules of an operation are given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.watch.op_kinds import MASK_SENTINEL

if TYPE_CHECKING:
    from precheck.cure.scales.constraints import Constraints
    from precheck.cure.scales.forms import Form
    from precheck.measure.trace.flow import FlowOp


@dataclass(frozen=True, slots=True, kw_only=True)
class OpContext:
    """The operation that is being interpreted, and where its requirements go."""

    op: FlowOp
    constraints: Constraints
    number_form: Form
    """How the operation's scalar arguments change with numbers of the config."""
    is_before_root: bool
    """A root or a division reads its result, as with the variance of a norm."""

    @property
    def name(self) -> str:
        """ATen name without the ``_`` of operations that write into a tensor."""
        return self.op.name.removesuffix("_")

    @property
    def has_scaled_constant(self) -> bool:
        """Whether a scalar argument would have to be scaled along with the tensors."""
        return any(map(is_scaled_constant, self.op.scalars))


def is_scaled_constant(number: float) -> bool:
    """Whether a constant changes when it is scaled; zero, infinity and mask values do not."""
    return number != 0 and math.isfinite(number) and abs(number) < -MASK_SENTINEL
