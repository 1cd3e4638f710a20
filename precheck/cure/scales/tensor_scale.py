"""How a tensor is scaled: by one power of two, or by several in lanes along one dimension."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import NOTHING, Equation, Form, Kind, Reason, Unknown

if TYPE_CHECKING:
    from precheck.cure.scales.flow import FlowOp, Value

Cuts = dict[str, tuple[int, frozenset[int]]]
"""By parameter: the dimension it is cut along, and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The part of a parameter that a lane's numbers were multiplied by last."""

    parameter: str
    dim: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledRange:
    """Neighbouring places of a tensor that are scaled alike; size 0 for all of it."""

    form: Form
    size: int = 0
    owner: Owner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The lanes of a tensor.

    ``is_zero``: it holds nothing but zeros or masks, which no factor changes.
    """

    lanes: tuple[ScaledRange, ...]
    dim: int = -1
    """Along which they lie, from the end."""
    is_zero: bool = False
    axes: tuple[int, ...] = ()
    """Of a parameter, or a view or cast of one: its dimensions, in the order they lie in now."""

    @property
    def form(self) -> Form:
        """That of the first lane."""
        return self.lanes[0].form

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter, but for casts and views."""
        return bool(self.axes)

    @property
    def only_weight(self) -> Unknown | None:
        """The parameter that a tensor is, whole and as it is stored."""
        if not self.is_weight or len(self.lanes) != 1 or len(self.form.terms) != 1:
            return None
        unknown, factor = self.form.terms[0]
        return unknown if factor == 1.0 and unknown.kind is Kind.WEIGHT else None

    def raised(self, exponent: float) -> Scale:
        """That of a power of the tensor."""
        lanes = tuple(replace(each, form=each.form.times(exponent)) for each in self.lanes)
        return replace(self, lanes=lanes, axes=())


def alike(form: Form, *, is_zero: bool = False) -> Scale:
    """All places scaled by the same."""
    return Scale(lanes=(ScaledRange(form=form),), is_zero=is_zero)


ZERO = alike(NOTHING, is_zero=True)
CONSTANT = alike(NOTHING)


def of_parameter(value: Value, cuts: Cuts) -> Scale:
    """A parameter, with an unknown for each part that it is cut into."""
    name, rank = value.parameter or "", len(value.shape)
    axes = tuple(range(-rank, 0))
    if name not in cuts:
        whole = Unknown(kind=Kind.WEIGHT, name=name)
        owner = Owner(parameter=name, dim=-1, start=0)
        return Scale(lanes=(ScaledRange(form=Form.of(whole), owner=owner),), axes=axes)
    dim, places = cuts[name]
    lanes = tuple(
        ScaledRange(
            size=stop - start,
            form=Form.of(Unknown(kind=Kind.WEIGHT, name=name, dim=dim, start=start, stop=stop)),
            owner=Owner(parameter=name, dim=dim, start=start),
        )
        for start, stop in pairwise([0, *sorted(places), value.shape[dim]])
    )
    return Scale(lanes=lanes, dim=dim, axes=axes)


@dataclass(slots=True, kw_only=True)
class Ledger:
    """What operations demand, written down while they are interpreted."""

    op: FlowOp
    """The operation at hand."""
    cuts: Cuts
    """Where parameters are cut in this pass."""
    equations: list[Equation] = field(default_factory=list)
    more_cuts: Cuts = field(default_factory=dict)
    """Where they have to be cut in the next."""

    @property
    def source(self) -> str:
        """Base name of the file and line."""
        return f"{PurePath(self.op.filename).name}:{self.op.line}"

    def demand(self, form: Form, reason: Reason) -> None:
        """The form has to be 0, because of the operation at hand."""
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

    def alike(self, one: Form, other: Form) -> None:
        """Two tensors have to be scaled alike; beside a constant, not at all."""
        is_constant = not one or not other
        self.demand(one - other, Reason.CONSTANT if is_constant else Reason.ALIKE)

    def one(self, scale: Scale) -> Form:
        """The form of a tensor all of whose lanes have to be scaled alike."""
        for each in scale.lanes[1:]:
            self.demand(each.form - scale.form, Reason.ALIKE)
        return scale.form

    def merged(self, scale: Scale) -> Scale:
        """A tensor without lanes: all of them have to be scaled alike."""
        return alike(self.one(scale), is_zero=scale.is_zero)

    def ask_cut(self, owner: Owner, offset: int) -> None:
        """The parameter has to be cut so far into the owner's part."""
        known = self.cuts.get(owner.parameter)
        if known is None or known[0] == owner.dim:
            _, places = self.more_cuts.get(owner.parameter, (owner.dim, frozenset()))
            self.more_cuts[owner.parameter] = (owner.dim, places | {owner.start + offset})
