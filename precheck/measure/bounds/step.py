"""One operation of the trace, with what is known of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.bounds.forms import Known
from precheck.measure.bounds.pairs import Refinement
from precheck.measure.trace.flow import Value, leaves

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.trace.flow import FlowOp


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """An operation, and what is known of its inputs."""

    op: FlowOp
    args: tuple[Any, ...]
    """Its arguments, with what is known in place of each tensor of numbers."""
    kwargs: dict[str, Any]
    output: Value
    grows: frozenset[int]
    """Dimensions of its first tensor of numbers that are longer for a longer text."""
    takes_some_rows: bool = False
    """What it takes of its input depends on how long the text is."""
    place: int = 0
    """Which of its results this is."""
    refinement: Refinement = field(default_factory=Refinement)
    """What time is left for better bounds."""
    known: tuple[Known, ...] = field(init=False)
    """What is known of the tensors of numbers that it reads, in order."""
    rest: tuple[object, ...] = field(init=False)
    """Its other arguments, in order; what is known of a tensor that holds no real numbers."""

    def __post_init__(self) -> None:
        given = list(leaves((self.args, self.kwargs)))
        known = tuple(leaf for leaf in given if isinstance(leaf, Known))
        object.__setattr__(self, "known", known)
        rest = tuple(_told(leaf) for leaf in given if not isinstance(leaf, Known))
        object.__setattr__(self, "rest", rest)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its result."""
        return self.output.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of its result."""
        return self.output.dtype

    @property
    def sums_in(self) -> torch.dtype:
        """What its kernel accumulates in: float32, or wider."""
        return torch.promote_types(torch.float32, self.dtype)

    @property
    def is_exact_cast(self) -> bool:
        """Whether every number of its input's dtype is one of its result's."""
        return torch.promote_types(self.source_dtype, self.dtype) is self.dtype

    @property
    def source_dtype(self) -> torch.dtype:
        """Of the first tensor that it reads."""
        return next(leaf.dtype for leaf in leaves(self.op.args) if isinstance(leaf, Value))

    def number(self, place: int, name: str, default: float | None = None) -> float | None:
        """A number among its arguments, by place or by name."""
        found = self.kwargs.get(name, self.args[place] if place < len(self.args) else default)
        if isinstance(found, bool) or not isinstance(found, int | float):
            return default
        return float(found)

    def changed_dims(self, shape: tuple[int, ...]) -> list[int]:
        """Dimensions of an input of that shape that its result does not have as they are."""
        if len(shape) != len(self.shape):
            return list(range(len(shape)))
        return [dim for dim, size in enumerate(shape) if size != self.shape[dim]]

    def unknown(self) -> Known:
        """Nothing is known of its result."""
        return Known(magnitudes=torch.full(self.shape, torch.inf, dtype=torch.float64))

    def bounded(self, bound: float, **more: Any) -> Known:
        """Its result has no larger magnitude."""
        return Known(magnitudes=torch.full(self.shape, bound, dtype=torch.float64), **more)


def _told(leaf: object) -> object:
    if not isinstance(leaf, Value):
        return leaf
    numbers = None if leaf.constant is None else tuple(leaf.constant.flatten().tolist())
    return leaf.shape, leaf.dtype, numbers


def finite(tensor: Tensor) -> Tensor:
    """With infinity in place of NaN: 0 times what is unbounded."""
    return tensor.nan_to_num(nan=torch.inf, posinf=torch.inf)
