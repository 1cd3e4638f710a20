"""What each operation makes of the scales it is given, and what it demands of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Form, Kind, Reason
from precheck.cure.scales.tensor_scale import CONSTANT, ZERO, Owner, Scale, ScaledRange, alike
from precheck.cure.scales.views import SPLITS, views
from precheck.measure.watch.op_kinds import (
    ALLOCATIONS,
    FUSED_ATTENTION,
    GROUPED_PRODUCT,
    MOVES,
    PRODUCTS,
)
from precheck.measure.watch.reduce import MASK_SENTINEL

if TYPE_CHECKING:
    from precheck.cure.scales.flow import FlowOp, Value
    from precheck.cure.scales.tensor_scale import Ledger

LARGEST_EPSILON = 1e-2
"""Constants up to here that are added before a root or a division are epsilons: 1e-12 to 1e-3 are
used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation: its rules are methods."""

    op: FlowOp
    ledger: Ledger
    number_form: Form
    """How the operation's numbers change with settings of the config."""
    is_before_root: bool
    """Its result goes into a root or divides something: what a norm does."""

    def results(self, scales: list[Scale], given: list[Value], made: list[Value]) -> list[Scale]:
        """The scale of each tensor that the operation makes."""
        name = self.op.name
        if FUSED_ATTENTION in name:
            return self._attention(scales, len(made))
        if scales and (self.op.is_view or name in SPLITS):
            return views(scales[0], given[0], made, self.ledger)
        return [self._result(name, scales)] * len(made)

    def compared(self, scales: list[Scale], made: list[Value]) -> None:
        """Numbers that become indices or truth values: order and sign outlast a factor."""
        forms = [self.ledger.one(each) for each in scales if not each.is_zero]
        for each in forms[1:]:
            self.ledger.alike(each, forms[0])
        is_cast = self.op.name == "aten._to_copy" and not str(made[0].dtype).endswith("bool")
        is_threshold = self.op.name in _COMPARISONS and any(map(_matters, self.op.scalars))
        if forms and (is_cast or is_threshold):
            self.ledger.demand(forms[0], Reason.NOT_LINEAR if is_cast else Reason.CLAMP)

    def _result(self, name: str, scales: list[Scale]) -> Scale:
        rule = RULES.get(name.removesuffix("_"))
        if not scales:
            return self._created()
        if name in PRODUCTS or GROUPED_PRODUCT in name:
            return self._product(scales)
        if rule is not None:
            return rule(self, scales)
        return self._moved(scales) if name in MOVES else self._unknown(scales)

    def _created(self) -> Scale:
        name = self.op.name
        is_filled = name in {"aten.full", "aten.new_full", "aten.full_like", "aten.scalar_tensor"}
        is_plain = is_filled and not _matters((0.0, *self.op.scalars)[-1])
        return ZERO if name in ALLOCATIONS or "zeros" in name or is_plain else CONSTANT

    def _unknown(self, scales: list[Scale]) -> Scale:
        """Not to be given anything scaled; gives nothing scaled."""
        for each in scales:
            self.ledger.demand(self.ledger.one(each), Reason.NOT_LINEAR)
        return CONSTANT

    def _attention(self, scales: list[Scale], num_made: int) -> list[Scale]:
        query, key, value, *rest = scales
        one = self.ledger.one
        self.ledger.demand(one(query) + one(key) + self.number_form, Reason.NOT_LINEAR)
        for each in rest:
            self.ledger.demand(one(each), Reason.NOT_LINEAR)
        return [alike(one(value)), *[CONSTANT] * (num_made - 1)]

    # Products.

    def _product(self, scales: list[Scale]) -> Scale:
        """``a @ b``, and what is added to it."""
        match self.op.name:
            case "aten.addmm" | "aten.baddbmm" | "aten.addbmm" | "aten._addmm_activation":
                bias, a, b = scales[:3]
                return self._sum([self._times(a, b), bias])
            case "aten.convolution" | "aten.linear":
                a, b = scales[:2]
                made = alike(self.ledger.one(a) + self.ledger.one(b))
                return self._sum([made, *scales[2:3]])
            case _:
                return self._times(scales[0], scales[1])

    def _times(self, a: Scale, b: Scale) -> Scale:
        """The lanes of the result are those of ``b`` along its last dimension."""
        if a.is_zero or b.is_zero:
            return ZERO
        first = self.ledger.one(a)
        if len(b.lanes) > 1 and b.dim != -1:
            return alike(first + self.ledger.one(b))
        return Scale(lanes=tuple(_through(each, first, b.axes) for each in b.lanes))

    def multiplied(self, scales: list[Scale]) -> Scale:
        """Element by element, or by a number."""
        return self._scaled(scales, 1.0)

    def divided(self, scales: list[Scale]) -> Scale:
        """The same with the inverse."""
        if self.op.kwargs.get("rounding_mode") is not None:
            return self._unknown(scales)
        return self._scaled(scales, -1.0)

    def _scaled(self, scales: list[Scale], sign: float) -> Scale:
        if any(each.is_zero for each in scales):
            return ZERO
        first, *rest = map(self._along_last, scales)
        if not rest:
            return _shifted(first, [self.number_form.times(sign)] * len(first.lanes))
        (factor,) = rest
        if sign > 0 and len(factor.lanes) > len(first.lanes):
            first, factor = factor, first
        forms = [each.form for each in factor.lanes]
        if len(forms) != len(first.lanes):
            forms = [self.ledger.one(factor)] * len(first.lanes)
        made = _shifted(first, [each.times(sign) for each in forms])
        return replace(made, lanes=tuple(replace(each, owner=None) for each in made.lanes), axes=())

    def _along_last(self, scale: Scale) -> Scale:
        """Lanes that lie along another dimension than the last are one."""
        return scale if len(scale.lanes) == 1 or scale.dim == -1 else self.ledger.merged(scale)

    # Sums.

    def added(self, scales: list[Scale]) -> Scale:
        """Of two tensors, or of a tensor and a number."""
        return self._sum(scales[:2]) if len(scales) > 1 else self._plus(scales[0])

    def _sum(self, scales: list[Scale]) -> Scale:
        """What is added has to be scaled alike, lane by lane."""
        others = [self._along_last(each) for each in scales if not each.is_zero]
        if not others:
            return ZERO
        widest = max(others, key=lambda each: len(each.lanes))
        for each in others:
            if each is not widest:
                self._equal(widest, each)
        return replace(widest, axes=())

    def _equal(self, wide: Scale, other: Scale) -> None:
        if len(other.lanes) == len(wide.lanes):
            for ours, theirs in zip(wide.lanes, other.lanes, strict=True):
                self.ledger.alike(ours.form, theirs.form)
            return
        owner = other.lanes[0].owner if len(other.lanes) == 1 else None
        if owner is not None and other.is_weight:  # a bias
            for edge in list(accumulate(each.size for each in wide.lanes))[:-1]:
                self.ledger.ask_cut(owner, edge)
        form = self.ledger.one(other)
        for ours in wide.lanes:
            self.ledger.alike(ours.form, form)

    def _plus(self, scale: Scale) -> Scale:
        """A number is added to all of a tensor."""
        number = next((each for each in self.op.scalars if each), 0.0)
        if not _matters(number):
            return scale
        if scale.is_zero:
            return CONSTANT
        weight = scale.only_weight
        if weight is not None:
            # c - w is w - c but for the sign
            shift = number if self.op.name.removesuffix("_") == "aten.add" else -number
            shifted = replace(weight, kind=Kind.SHIFTED_WEIGHT, shift=shift)
            return replace(scale, lanes=(replace(scale.lanes[0], form=Form.of(shifted)),))
        is_epsilon = 0 < number <= LARGEST_EPSILON and self.is_before_root
        reason = Reason.EPSILON if is_epsilon else Reason.CONSTANT
        self.ledger.demand(self.ledger.one(scale) - self.number_form, reason)
        return scale

    # Everything else.

    def joined(self, scales: list[Scale]) -> Scale:
        """What is put side by side, or into one another, has to be scaled alike."""
        value = self.op.args[-1] if self.op.args else None
        is_written = self.op.name.removesuffix("_") in _WRITING_NUMBERS
        if is_written and isinstance(value, int | float) and _matters(value):
            scales = [*scales, CONSTANT]
        others = [each for each in scales if not each.is_zero]
        if not others:
            return ZERO
        first = self.ledger.one(others[0])
        for each in others[1:]:
            self.ledger.alike(self.ledger.one(each), first)
        return alike(first)

    def chosen(self, scales: list[Scale]) -> Scale:
        """``where`` and ``masked_fill``: of two tensors, or of one and a number."""
        if any(map(_matters, self.op.scalars)):
            return self.joined([*scales, CONSTANT])
        return self.joined(scales) if len(scales) > 1 else scales[0]

    def clamped(self, scales: list[Scale]) -> Scale:
        """At zero any factor passes, at another constant none."""
        if len(scales) > 1:
            return self.joined(scales)
        if any(map(_matters, self.op.scalars)):
            self.ledger.demand(self.ledger.one(scales[0]) - self.number_form, Reason.CLAMP)
        return scales[0]

    def cast(self, scales: list[Scale]) -> Scale:
        """The same numbers."""
        return scales[0]

    def handed_on(self, scales: list[Scale]) -> Scale:
        """Twice the tensor is twice the result, place by place."""
        return replace(scales[0], axes=())

    def reduced(self, scales: list[Scale]) -> Scale:
        """Twice the tensor is twice the result, over several places."""
        return self.ledger.merged(scales[0])

    def gathered(self, scales: list[Scale]) -> Scale:
        """Rows picked from the first; what else is a number picks."""
        return replace(self._along_last(scales[0]), axes=())

    def _moved(self, scales: list[Scale]) -> Scale:
        """Elements of one tensor, or of several that are joined."""
        return self.gathered(scales) if len(scales) == 1 else self.joined(scales)

    def powered(self, scales: list[Scale]) -> Scale:
        """``x ** n``; not ``n ** x``."""
        exponent = self.op.args[-1] if self.op.args else None
        if len(scales) > 1 or not isinstance(exponent, int | float):
            return self._unknown(scales)
        return scales[0].raised(exponent)

    def varied(self, scales: list[Scale]) -> Scale:
        """A variance."""
        return self.ledger.merged(scales[0]).raised(2.0)

    def rooted(self, scales: list[Scale]) -> Scale:
        """A square root."""
        return scales[0].raised(0.5)

    def root_inverted(self, scales: list[Scale]) -> Scale:
        """One over a square root."""
        return scales[0].raised(-0.5)

    def inverted(self, scales: list[Scale]) -> Scale:
        """One over it."""
        return scales[0].raised(-1.0)

    def layer_norm(self, scales: list[Scale]) -> Scale:
        """``(x, weight, bias)`` and an epsilon."""
        given, *parameters = scales
        self.ledger.demand(self.ledger.one(given).times(2.0) - self.number_form, Reason.EPSILON)
        return self._sum(parameters) if parameters else CONSTANT


def _through(lane: ScaledRange, form: Form, axes: tuple[int, ...]) -> ScaledRange:
    """A lane of a product: the owner's dimension is the last of the parameter as it lies now."""
    owner: Owner | None = lane.owner
    owner = None if owner is None or not axes else replace(owner, dim=axes[-1])
    return replace(lane, form=form + lane.form, owner=owner)


def _shifted(scale: Scale, forms: list[Form]) -> Scale:
    """The scale with a form added to each lane."""
    lanes = tuple(
        replace(lane, form=lane.form + form) for lane, form in zip(scale.lanes, forms, strict=True)
    )
    return replace(scale, lanes=lanes)


def _matters(number: float) -> bool:
    """Whether a constant is not the same at every scale, as zero, infinity and masks are."""
    return number != 0 and math.isfinite(number) and abs(number) < -MASK_SENTINEL


_COMPARISONS = frozenset(f"aten.{each}" for each in ("gt", "ge", "lt", "le", "eq", "ne"))
_WRITING_NUMBERS = frozenset({"aten.scatter", "aten.index_fill"})
"""Their last argument may be a number that is written."""

Rule = Callable[[Step, "list[Scale]"], Scale]


def _rules(*entries: tuple[Rule, str]) -> dict[str, Rule]:
    return {f"aten.{name}": rule for rule, names in entries for name in names.split()}


RULES = _rules(
    (Step.added, "add sub rsub"),
    (Step.multiplied, "mul"),
    (Step.divided, "div"),
    (Step.powered, "pow"),
    (Step.varied, "var"),
    (Step.rooted, "sqrt"),
    (Step.root_inverted, "rsqrt"),
    (Step.inverted, "reciprocal"),
    (Step.layer_norm, "native_layer_norm _fused_rms_norm"),
    (Step.clamped, "clamp clamp_min clamp_max hardtanh"),
    (Step.chosen, "where masked_fill"),
    (Step.joined, "maximum minimum copy index_put index_add scatter scatter_add index_fill"),
    (Step.joined, "masked_scatter cat stack"),
    (Step.cast, "_to_copy"),
    (Step.handed_on, "relu neg abs leaky_relu cumsum tril triu sort topk"),
    (Step.reduced, "mean sum amax amin max min std norm linalg_vector_norm"),
    (Step.gathered, "embedding index index_select gather _unsafe_index masked_select"),
)
"""By operation; those that write into a tensor are named without the ``_``."""
