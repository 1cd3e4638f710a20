"""Which powers of two a model can be multiplied by without changing what it computes.

Idea. Every parameter, and every number of the config that reaches an operation, gets an unknown
power of two. Along the data flow each tensor is scaled by a sum of them: a product adds those of
its factors, a square doubles, a norm takes off what it is given. Where tensors are added theirs
have to be equal; what a softmax or a silu reads must not be scaled at all; nor may the logits. The
solutions of these equations are all the rescalings that are exact, whatever the architecture and
whatever its modules are called.

Parts of a parameter have unknowns of their own where the model takes its result apart (gate and up
in one matrix). What becomes of them is found by interpreting the flow again.

What it cannot see: code that depends on numbers, and what the forward of text does not pass
(towers for images). An operation it does not know must not be given anything scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING

from precheck.probe.op_kinds import (
    ALLOCATIONS,
    FUSED_ATTENTION,
    GROUPED_PRODUCT,
    MOVES,
    PRODUCTS,
)
from precheck.probe.reduce import MASK_SENTINEL
from precheck.records.scaling import (
    NOTHING,
    Equation,
    Form,
    Kind,
    Reason,
    Scaled,
    Scales,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from precheck.probe.flow import Flow, Value

LARGEST_EPSILON = 1e-2
"""Constants up to here that are added to a mean of squares are epsilons: 1e-12 to 1e-3 are used."""

_MOST_PASSES = 12
"""A parameter that is cut is cut again at most a few times: its bias, then the next layer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    """The part of a parameter that a lane's numbers were multiplied by last."""

    parameter: str
    dim: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lane:
    """Neighbouring places of a tensor that are scaled alike."""

    size: int
    form: Form
    owner: _Owner | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """How a tensor is scaled: alike, or in lanes along one dimension.

    ``is_zero``: it holds nothing but zeros, or masks, which no factor changes.
    """

    lanes: tuple[_Lane, ...]
    dim: int = -1
    is_zero: bool = False
    axes: tuple[int, ...] = ()
    """Of a parameter, or a view or cast of one: its dimensions, in the order they lie in now."""

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter, but for casts and views."""
        return bool(self.axes)

    @property
    def form(self) -> Form:
        """That of the first lane."""
        return self.lanes[0].form

    @property
    def is_alike(self) -> bool:
        """Whether all places are scaled by the same."""
        return all(each.form == self.form for each in self.lanes)


def _alike(form: Form) -> _Scale:
    return _Scale(lanes=(_Lane(size=0, form=form),))


_ZERO = _Scale(lanes=(_Lane(size=0, form=NOTHING),), is_zero=True)
_CONSTANT = _alike(NOTHING)

Cuts = dict[str, tuple[int, frozenset[int]]]
"""By parameter: the dimension it is cut along, and where."""


def find_scales(
    flow: Flow,
    *,
    settings: Mapping[tuple[int, int], Form] | None = None,
    pinned: Iterable[str] = (),
    dtype: torch.dtype,
) -> Scales:
    """The equations of a flow, and how each stored result is scaled.

    Args:
        flow: a forward.
        settings: how numbers of the config reach operations: by index of the operation and of its
            scalar.
        pinned: parameters that must not be scaled: something untraced is added to what they make.
        dtype: results in this dtype are the ones that may leave its range.
    """
    cuts: Cuts = {}
    for _ in range(_MOST_PASSES):
        found = _Interpreter(flow, settings or {}, cuts, dtype)
        found.go()
        if not found.more_cuts:
            break
        cuts = _with(cuts, found.more_cuts)
    found.pin(pinned)
    return Scales(equations=tuple(found.equations), scaled=tuple(found.scaled))


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
        settings: Mapping[tuple[int, int], Form],
        cuts: Cuts,
        dtype: torch.dtype,
    ) -> None:
        self.equations: list[Equation] = []
        self.scaled: list[Scaled] = []
        self.more_cuts: Cuts = {}
        self._flow = flow
        self._settings = settings
        self._cuts = cuts
        self._dtype = dtype
        self._scales: dict[Value, _Scale] = {}
        self._storages: dict[int, list[Value]] = {}
        self._keys: dict[Value, tuple[str, str, int]] = {}
        """What measured a tensor: the operation that made its numbers, before casts and moves."""
        self._index = 0
        self._op = flow.ops[0]

    def go(self) -> None:
        """Interprets every operation."""
        for index, op in enumerate(self._flow.ops):
            self._index, self._op = index, op
            given = [each for each in self._op.inputs if each.is_number]
            scales = [self._scale(each) for each in given]
            made = [each for each in self._op.outputs if each.is_number]
            if not made:
                self._compared(scales)
                continue
            for output, scale in zip(made, self._results(scales, given, made), strict=True):
                self._set(output, scale, given)
        self._demand(self._one(self._scale(self._flow.result)), Reason.RESULT)

    def pin(self, parameters: Iterable[str]) -> None:
        """What these make is joined with something that was not traced."""
        for name in parameters:
            self._demand(Form.of(Unknown(kind=Kind.WEIGHT, name=name)), Reason.UNTRACED)

    # What is known of a tensor.

    def _scale(self, value: Value) -> _Scale:
        known = self._scales.get(value)
        if known is not None:
            return known
        scale = _CONSTANT if value.parameter is None else self._of_parameter(value)
        self._scales[value] = scale
        self._storages.setdefault(value.storage, []).append(value)
        return scale

    def _of_parameter(self, value: Value) -> _Scale:
        name, rank = value.parameter or "", len(value.shape)
        dim, places = self._cuts.get(name, (-1, frozenset()))
        edges = [0, *sorted(places), value.shape[dim]] if places else [0, None]
        lanes = tuple(
            _Lane(
                size=0 if stop is None or start is None else stop - start,
                form=Form.of(
                    Unknown(
                        kind=Kind.WEIGHT,
                        name=name,
                        dim=dim if places else 0,
                        start=start or 0,
                        stop=stop,
                    )
                ),
                owner=_Owner(parameter=name, dim=dim, start=start or 0),
            )
            for start, stop in pairwise(edges)
        )
        return _Scale(lanes=lanes, dim=dim, axes=tuple(range(-rank, 0)))

    def _set(self, output: Value, scale: _Scale, given: Sequence[Value]) -> None:
        if self._is_in_place(output, given):
            scale = self._written(output, scale)
        self._scales[output] = scale
        self._storages.setdefault(output.storage, []).append(output)
        name = self._op.name
        moves = self._op.is_view or name in MOVES or name == "aten._to_copy"
        source = next((self._keys[each] for each in given if each in self._keys), None)
        if moves and source is not None:
            self._keys[output] = source
        elif not moves:
            self._keys[output] = self._op.key
        if output.dtype == self._dtype and not self._op.is_view and output in self._keys:
            self.scaled += [
                Scaled(form=form, key=self._keys[output], source=self._source)
                for form in {each.form for each in scale.lanes}
            ]

    def _is_in_place(self, output: Value, given: Sequence[Value]) -> bool:
        return not self._op.is_view and any(output is each for each in given)

    def _written(self, output: Value, scale: _Scale) -> _Scale:
        """All views of the memory see what was written; what was there before has to be alike."""
        before = self._scales.get(output, _ZERO)
        if not (before.is_zero or scale.is_zero):
            self._demand(self._one(scale) - self._one(before), Reason.ALIKE)
        kept = before if scale.is_zero else scale
        for view in self._storages.get(output.storage, ()):
            self._scales[view] = replace(kept, lanes=(replace(kept.lanes[0], size=0),))
        return kept

    # What has to hold.

    def _demand(self, form: Form, reason: Reason) -> None:
        if form:
            self.equations.append(
                Equation(
                    form=form,
                    reason=reason,
                    module=self._op.module,
                    op=self._op.name,
                    source=self._source,
                )
            )

    @property
    def _source(self) -> str:
        return f"{PurePath(self._op.filename).name}:{self._op.line}"

    def _one(self, scale: _Scale) -> Form:
        """The form of a tensor all of whose lanes have to be scaled alike."""
        for each in scale.lanes[1:]:
            self._demand(each.form - scale.form, Reason.ALIKE)
        return scale.form

    def _compared(self, scales: list[_Scale]) -> None:
        """Numbers that become indices or truth values: order and sign outlast a factor."""
        forms = [self._one(each) for each in scales if not each.is_zero]
        for each in forms[1:]:
            self._demand(each - forms[0], Reason.ALIKE)
        if len(forms) == 1 and any(map(_matters, self._op.scalars)) and _compares(self._op.name):
            self._demand(forms[0], Reason.CLAMP)

    # What operations make of scales.

    def _results(self, scales: list[_Scale], given: list[Value], made: list[Value]) -> list[_Scale]:
        name = self._op.name
        if FUSED_ATTENTION in name:
            return self._attention(scales, len(made))
        if scales and (self._op.is_view or name in {"aten.split", "aten.split_with_sizes"}):
            return self._views(scales[0], given[0], made)
        return [self._result(name, scales)] * len(made)

    def _result(self, name: str, scales: list[_Scale]) -> _Scale:
        rule = _RULES.get(name.removesuffix("_"))
        if not scales:
            return self._created()
        if name in PRODUCTS or GROUPED_PRODUCT in name:
            return self._product(scales)
        if rule is not None:
            return rule(self, scales)
        return self._moved(scales) if name in MOVES else self._unknown(scales)

    def _created(self) -> _Scale:
        name, scalars = self._op.name, self._op.scalars
        is_filled = name in {"aten.full", "aten.new_full", "aten.full_like", "aten.scalar_tensor"}
        number = scalars[-1] if scalars else 0.0
        if name in ALLOCATIONS or "zeros" in name or (is_filled and not _matters(number)):
            return _ZERO
        return _CONSTANT

    def _unknown(self, scales: list[_Scale]) -> _Scale:
        """Not to be given anything scaled; gives nothing scaled."""
        for each in scales:
            self._demand(self._one(each), Reason.NOT_LINEAR)
        return _CONSTANT

    def handed_on(self, scales: list[_Scale]) -> _Scale:
        """Twice the tensor is twice the result."""
        return scales[0]

    def _moved(self, scales: list[_Scale]) -> _Scale:
        """Elements of one tensor, or of several that are joined."""
        if len(scales) == 1:
            return replace(scales[0], axes=())
        return self.joined(scales)

    def joined(self, scales: list[_Scale]) -> _Scale:
        """What is put side by side or one over the other has to be scaled alike."""
        others = [each for each in scales if not each.is_zero]
        if not others:
            return _ZERO
        first = self._one(others[0])
        for each in others[1:]:
            self._demand(self._one(each) - first, Reason.ALIKE)
        return _alike(first)

    def gathered(self, scales: list[_Scale]) -> _Scale:
        """Rows picked from the first; what else is a number picks."""
        return replace(scales[0], axes=())

    def _views(self, scale: _Scale, base: Value, made: list[Value]) -> list[_Scale]:
        name = self._op.name
        if scale.is_weight:
            return self._weight_views(scale, base, made)
        if len(scale.lanes) == 1 and scale.lanes[0].owner is None:
            return [scale] * len(made)
        if name in {"aten.slice", "aten.split", "aten.split_with_sizes"}:
            return self._cut(scale, base, made)
        # a reshape keeps the lanes where the dimension they lie along stays as it is
        if scale.dim < 0 and made[0].shape[scale.dim :] == base.shape[scale.dim :]:
            return [scale] * len(made)
        form = self._one(scale)
        return [replace(_alike(form), is_zero=scale.is_zero)] * len(made)

    def _weight_views(self, scale: _Scale, base: Value, made: list[Value]) -> list[_Scale]:
        """Views of a parameter that keep, turn or drop its dimensions."""
        name, rank = self._op.name, len(base.shape)
        order = list(range(rank))
        if name == "aten.t":
            order.reverse()
        elif name == "aten.transpose":
            one, other = (int(each) % rank for each in self._op.scalars[:2])
            order[one], order[other] = other, one
        elif name == "aten.permute":
            order = [int(each) % rank for each in self._op.scalars[:rank]]
        elif name == "aten.select":
            del order[int(self._op.scalars[0]) % rank]
        elif made[0].shape != base.shape:
            form = self._one(scale)
            return [replace(_alike(form), is_zero=scale.is_zero)] * len(made)
        axes = tuple(scale.axes[each] for each in order)
        if len(scale.lanes) > 1 and scale.axes[scale.dim] not in axes:
            return [_alike(self._one(scale))] * len(made)
        dim = axes.index(scale.axes[scale.dim]) - len(axes) if len(scale.lanes) > 1 else -1
        return [replace(scale, axes=axes, dim=dim)] * len(made)

    def _cut(self, scale: _Scale, base: Value, made: list[Value]) -> list[_Scale]:
        """Parts of the lanes; a lane that is cut through asks for its parameter to be cut there."""
        along = next(
            (dim for dim in range(len(base.shape)) if made[0].shape[dim] != base.shape[dim]), None
        )
        if along is None or along - len(base.shape) != scale.dim:
            return [scale] * len(made)
        start = self._slice_start(base.shape[along])
        found: list[_Scale] = []
        for each in made:
            stop = start + each.shape[along]
            found.append(self._part(scale, start, stop, base.shape[along]))
            start = stop
        return found

    def _slice_start(self, size: int) -> int:
        if self._op.name != "aten.slice":
            return 0
        start = self._op.args[2] if len(self._op.args) > 2 else 0  # noqa: PLR2004  (x, dim, start)
        return (
            0
            if start is None
            else min(max(int(start), -size) % size if start < 0 else int(start), size)
        )

    def _part(self, scale: _Scale, start: int, stop: int, size: int) -> _Scale:
        lanes: list[_Lane] = []
        position = 0
        for lane in scale.lanes:
            end = position + (lane.size or size)
            low, high = max(start, position), min(stop, end)
            if low < high:
                owner = lane.owner
                if owner is not None:
                    for place in (low, high):
                        if position < place < end:
                            self._ask_cut(
                                owner.parameter, owner.dim, owner.start + place - position
                            )
                    owner = replace(owner, start=owner.start + low - position)
                lanes.append(replace(lane, size=high - low, owner=owner))
            position = end
        return replace(scale, lanes=tuple(lanes) or scale.lanes)

    def _ask_cut(self, parameter: str, dim: int, place: int) -> None:
        known = self._cuts.get(parameter)
        if known is None or known[0] == dim:
            _, places = self.more_cuts.get(parameter, (dim, frozenset()))
            self.more_cuts[parameter] = (dim, places | {place})

    def _attention(self, scales: list[_Scale], num_made: int) -> list[_Scale]:
        query, key, value, *rest = scales
        self._demand(self._one(query) + self._one(key) + self._scalar_form(), Reason.NOT_LINEAR)
        for each in rest:
            self._demand(self._one(each), Reason.NOT_LINEAR)
        return [_alike(self._one(value)), *[_CONSTANT] * (num_made - 1)]

    def _product(self, scales: list[_Scale]) -> _Scale:
        """``a @ b``, and what is added to it where that comes first."""
        if self._op.name in {"aten.addmm", "aten.baddbmm", "aten.addbmm", "aten._addmm_activation"}:
            bias, a, b = scales[:3]
            return self._sum([self._times(a, b), bias])
        if self._op.name == "aten.convolution":
            made = _alike(self._one(scales[0]) + self._one(scales[1]))
            return self._sum([made, *scales[2:3]])
        if self._op.name == "aten.linear":
            made = self._times(scales[0], replace(scales[1], dim=-1))
            return self._sum([made, *scales[2:3]])
        return self._times(scales[0], scales[1])

    def _times(self, a: _Scale, b: _Scale) -> _Scale:
        """The lanes of the result are those of ``b`` along its last dimension."""
        if a.is_zero or b.is_zero:
            return _ZERO
        first = self._one(a)
        if b.dim != -1:
            return _alike(first + self._one(b))
        return _Scale(
            lanes=tuple(
                replace(each, form=first + each.form, owner=_along(each.owner, b.axes))
                for each in b.lanes
            ),
        )

    def _sum(self, scales: list[_Scale]) -> _Scale:
        """What is added has to be scaled alike, lane by lane."""
        others = [each for each in scales if not each.is_zero]
        if not others:
            return _ZERO
        widest = max(others, key=lambda each: len(each.lanes))
        for each in others:
            if each is not widest:
                self._equal(widest, each)
        return replace(widest, axes=())

    def _equal(self, wide: _Scale, other: _Scale) -> None:
        if len(other.lanes) == len(wide.lanes):
            for ours, theirs in zip(wide.lanes, other.lanes, strict=True):
                self._demand_alike(ours.form, theirs.form)
            return
        owner = other.lanes[0].owner if len(other.lanes) == 1 else None
        if owner is not None and other.is_weight and other.dim == wide.dim:  # a bias
            edges = list(accumulate(each.size for each in wide.lanes))[:-1]
            for edge in edges:
                self._ask_cut(owner.parameter, owner.dim, owner.start + edge)
        form = self._one(other)
        for ours in wide.lanes:
            self._demand_alike(ours.form, form)

    def _demand_alike(self, one: Form, other: Form) -> None:
        is_constant = not one or not other
        self._demand(one - other, Reason.CONSTANT if is_constant else Reason.ALIKE)

    def multiplied(self, scales: list[_Scale]) -> _Scale:
        return self._scaled_by(scales, 1.0)

    def divided(self, scales: list[_Scale]) -> _Scale:
        return self._scaled_by(scales, -1.0)

    def _scaled_by(self, scales: list[_Scale], sign: float) -> _Scale:
        if any(each.is_zero for each in scales):
            return _ZERO
        first, *rest = scales
        if rest:
            factor = rest[0]
            if len(factor.lanes) > len(first.lanes) and sign > 0:
                first, factor = factor, first
            pairs = (
                [each.form for each in factor.lanes]
                if len(factor.lanes) == len(first.lanes)
                else [self._one(factor)] * len(first.lanes)
            )
        else:
            pairs = [self._scalar_form()] * len(first.lanes)
        lanes = tuple(
            replace(lane, form=lane.form + form.times(sign))
            for lane, form in zip(first.lanes, pairs, strict=True)
        )
        return replace(first, lanes=lanes, axes=() if rest else first.axes)

    def added(self, scales: list[_Scale]) -> _Scale:
        if len(scales) > 1:
            return self._sum(scales[:2])
        return self._plus(scales[0])

    def _plus(self, scale: _Scale) -> _Scale:
        """A number is added to all of a tensor."""
        number = next((each for each in self._op.scalars if each), 0.0)
        if not number or scale.is_zero:
            return scale
        unknown = _only_weight(scale)
        if unknown is not None:
            shifted = replace(unknown, kind=Kind.SHIFTED_WEIGHT, shift=number)
            return replace(scale, lanes=(replace(scale.lanes[0], form=Form.of(shifted)),))
        form = self._one(scale)
        is_epsilon = 0 < number <= LARGEST_EPSILON
        self._demand(form - self._scalar_form(), Reason.EPSILON if is_epsilon else Reason.CONSTANT)
        return scale

    def clamped(self, scales: list[_Scale]) -> _Scale:
        first = scales[0]
        bounds = [*self._op.scalars]
        if len(scales) > 1:
            return self.joined(scales)
        if any(map(_matters, bounds)):
            self._demand(self._one(first) - self._scalar_form(), Reason.CLAMP)
        return first

    def chosen(self, scales: list[_Scale]) -> _Scale:
        """``where`` and ``masked_fill``: of two tensors, or of one and a number."""
        if any(map(_matters, self._op.scalars)):
            self._demand(self._one(scales[0]), Reason.CONSTANT)
        return self.joined(scales) if len(scales) > 1 else scales[0]

    def squared(self, scales: list[_Scale]) -> _Scale:
        """Also the variance."""
        return self._raised(scales[0], 2.0)

    def rooted(self, scales: list[_Scale]) -> _Scale:
        """A square root."""
        return self._raised(scales[0], 0.5)

    def root_inverted(self, scales: list[_Scale]) -> _Scale:
        """One over a square root."""
        return self._raised(scales[0], -0.5)

    def inverted(self, scales: list[_Scale]) -> _Scale:
        """One over it."""
        return self._raised(scales[0], -1.0)

    def power(self, scales: list[_Scale]) -> _Scale:
        exponent = self._op.scalars[-1] if self._op.scalars else 1.0
        return self._raised(scales[0], exponent)

    def _raised(self, scale: _Scale, exponent: float) -> _Scale:
        lanes = tuple(replace(each, form=each.form.times(exponent)) for each in scale.lanes)
        return replace(scale, lanes=lanes, axes=())

    def layer_norm(self, scales: list[_Scale]) -> _Scale:
        """``(x, weight, bias)`` and an epsilon."""
        given, *parameters = scales
        epsilon = self._scalar_form()
        self._demand(self._one(given).times(2.0) - epsilon, Reason.EPSILON)
        if not parameters:
            return _CONSTANT
        return self._sum([*parameters])

    def _scalar_form(self) -> Form:
        """How the operation's numbers change with settings; nothing where they do not."""
        for (index, _), form in self._settings_here().items():
            if index == self._index:
                return form
        return NOTHING

    def _settings_here(self) -> dict[tuple[int, int], Form]:
        count = len(self._op.scalars)
        places = ((self._index, place) for place in range(count))
        return {place: self._settings[place] for place in places if place in self._settings}


def _along(owner: _Owner | None, axes: tuple[int, ...]) -> _Owner | None:
    """The part of a parameter whose last dimension, as it lies now, is that of a product."""
    return None if owner is None or not axes else replace(owner, dim=axes[-1])


def _only_weight(scale: _Scale) -> Unknown | None:
    """The parameter that a tensor is, by itself and whole."""
    if not scale.is_weight or len(scale.lanes) != 1 or len(scale.form.terms) != 1:
        return None
    unknown, factor = scale.form.terms[0]
    return unknown if factor == 1.0 and unknown.kind is Kind.WEIGHT else None


def _matters(number: float) -> bool:
    """Whether a constant is not what it is at every scale: zero, infinity, a mask."""
    return number != 0 and math.isfinite(number) and abs(number) < -MASK_SENTINEL


def _compares(name: str) -> bool:
    return name.removesuffix("_") in {"aten.gt", "aten.ge", "aten.lt", "aten.le"}


_Rule = Callable[[_Interpreter, "list[_Scale]"], _Scale]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("aten.add", "aten.sub", "aten.rsub"), _Interpreter.added),
    "aten.mul": _Interpreter.multiplied,
    "aten.div": _Interpreter.divided,
    "aten.pow": _Interpreter.power,
    "aten.var": _Interpreter.squared,
    "aten.sqrt": _Interpreter.rooted,
    "aten.rsqrt": _Interpreter.root_inverted,
    "aten.reciprocal": _Interpreter.inverted,
    "aten.native_layer_norm": _Interpreter.layer_norm,
    "aten._fused_rms_norm": _Interpreter.layer_norm,
    **dict.fromkeys(
        ("aten.clamp", "aten.clamp_min", "aten.clamp_max", "aten.hardtanh"), _Interpreter.clamped
    ),
    **dict.fromkeys(("aten.where", "aten.masked_fill"), _Interpreter.chosen),
    **dict.fromkeys(
        (
            "aten.maximum",
            "aten.minimum",
            "aten.copy",
            "aten.index_put",
            "aten.index_add",
            "aten.scatter",
            "aten.scatter_add",
            "aten.masked_scatter",
            "aten.cat",
            "aten.stack",
        ),
        _Interpreter.joined,
    ),
    **dict.fromkeys(
        (
            "aten.relu",
            "aten.neg",
            "aten.abs",
            "aten.leaky_relu",
            "aten.mean",
            "aten.sum",
            "aten.amax",
            "aten.amin",
            "aten.max",
            "aten.min",
            "aten.cumsum",
            "aten.std",
            "aten.norm",
            "aten.linalg_vector_norm",
            "aten.topk",
            "aten.sort",
            "aten._to_copy",
            "aten.tril",
            "aten.triu",
        ),
        _Interpreter.handed_on,
    ),
    **dict.fromkeys(
        (
            "aten.embedding",
            "aten.index",
            "aten.index_select",
            "aten.gather",
            "aten._unsafe_index",
            "aten.masked_select",
        ),
        _Interpreter.gathered,
    ),
}
"""What an operation makes of the scales it is given; in-place ones are named without the ``_``."""
