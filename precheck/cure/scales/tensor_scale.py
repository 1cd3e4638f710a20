"""The scale of a tensor: one power of two for all of it, or several along one dimension."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from precheck.cure.scales.forms import UNSCALED, Form, Kind, Unknown

if TYPE_CHECKING:
    from precheck.cure.scales.flow import Value


class Partition(NamedTuple):
    """How a parameter is divided into ranges with an unknown each."""

    dim: int
    """Dimension that is divided, from the end."""
    boundaries: frozenset[int]


Partitions = dict[str, Partition]
"""By parameter; those that are missing have one unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterOffset:
    """A position along a dimension of a parameter."""

    parameter: str
    dim: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledRange:
    """Neighbouring positions of a tensor that have one scale."""

    form: Form
    size: int = 0
    """0: the whole dimension."""
    origin: ParameterOffset | None = None
    """Where the range begins in the parameter that the tensor was multiplied by last: to divide
    the range is to divide that parameter. None: it cannot be divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorScale:
    """The ranges of a tensor, in order."""

    ranges: tuple[ScaledRange, ...]
    dim: int = -1
    """Dimension that the ranges lie along, from the end."""
    is_zero: bool = False
    """The tensor holds only zeros or mask values, which no factor changes."""
    axes: tuple[int, ...] = ()
    """Of a parameter, or a view or cast of one: the parameter's dimensions in their order here."""

    @property
    def form(self) -> Form:
        """That of the first range."""
        return self.ranges[0].form

    @property
    def is_weight(self) -> bool:
        """Whether the tensor is a parameter, or a view or cast of one."""
        return bool(self.axes)

    @property
    def only_weight(self) -> Unknown | None:
        """The parameter's unknown, if the tensor is a parameter with one unknown."""
        if not self.is_weight or len(self.ranges) != 1 or len(self.form.terms) != 1:
            return None
        unknown, coefficient = self.form.terms[0]
        return unknown if coefficient == 1.0 and unknown.kind is Kind.WEIGHT else None

    def raised(self, exponent: float) -> TensorScale:
        """The scale of the tensor to the power of ``exponent``."""
        ranges = tuple(replace(part, form=part.form.times(exponent)) for part in self.ranges)
        return replace(self, ranges=ranges, axes=())

    def shifted(self, forms: list[Form]) -> TensorScale:
        """The scale with a form added to each range."""
        ranges = tuple(
            replace(part, form=part.form + form)
            for part, form in zip(self.ranges, forms, strict=True)
        )
        return replace(self, ranges=ranges)


def uniform_scale(form: Form, *, is_zero: bool = False) -> TensorScale:
    """One scale for the whole tensor."""
    return TensorScale(ranges=(ScaledRange(form=form),), is_zero=is_zero)


ZEROS = uniform_scale(UNSCALED, is_zero=True)
CONSTANT = uniform_scale(UNSCALED)


def parameter_scale(value: Value, partitions: Partitions) -> TensorScale:
    """The scale of a parameter, with an unknown for each range it is divided into."""
    name, rank = value.parameter or "", len(value.shape)
    axes = tuple(range(-rank, 0))
    if name not in partitions:
        whole = Unknown(kind=Kind.WEIGHT, name=name)
        origin = ParameterOffset(parameter=name, dim=-1, start=0)
        return TensorScale(ranges=(ScaledRange(form=Form.of(whole), origin=origin),), axes=axes)
    dim, boundaries = partitions[name]
    ranges = tuple(
        ScaledRange(
            size=stop - start,
            form=Form.of(Unknown(kind=Kind.WEIGHT, name=name, dim=dim, start=start, stop=stop)),
            origin=ParameterOffset(parameter=name, dim=dim, start=start),
        )
        for start, stop in pairwise([0, *sorted(boundaries), value.shape[dim]])
    )
    return TensorScale(ranges=ranges, dim=dim, axes=axes)
