"""Chooses powers of two that bring every result into range: the fewest and smallest that do.

An integer linear program: the equations of ``forms.py`` have to hold, each result has to
fit with some bits to spare, and the sum of the exponents is to be as small as possible. Whether
equations leave room for what is needed is the same question, answered by the same program: the one
that does not is what stands in the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Kind, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import highspy

    from precheck.cure.scales.forms import Equation, Form, Scaled, Scales, Unknown

MOST_BITS = 24
"""No factor is larger: float16 has 40 powers of two in all, subnormal ones among them."""

_MISSING_BIT = 1e6
"""What a bit of headroom that is missing costs, against 1 for an exponent of one parameter."""
_LOOSE_EPSILON = 20.0
"""What it costs if an epsilon is not scaled with its norm: more than to scale some weights."""
_SHIFTED = 8.0
"""What an exponent of ``1 + w`` costs, which is rounded: a few weights are rather scaled."""
_BROKEN = 1e3
"""What it costs to break an equation, where that is allowed: more than any exact way."""

_PRICES = {Kind.WEIGHT: 1.0, Kind.SHIFTED_WEIGHT: _SHIFTED, Kind.SETTING: 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A result, how large it was, and how it is scaled."""

    scaled: Scaled
    abs_max: float
    before_bits: float
    """Headroom as it was; negative where it did not fit."""
    after_bits: float
    """As predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is multiplied by which power of two, and what comes of it."""

    exponents: dict[Unknown, int]
    """Those that are not 0."""
    fits: tuple[Fit, ...]
    """A row for each group of results that are scaled alike: the largest of them."""
    loose: tuple[Equation, ...]
    """Epsilons that are not scaled with what they are added to."""
    broken: tuple[Equation, ...]
    """Equations that do not hold; only where that is allowed."""

    @property
    def misfits(self) -> tuple[Fit, ...]:
        """What would still not fit."""
        return tuple(each for each in self.fits if each.after_bits < 0)

    @property
    def is_exact(self) -> bool:
        """Whether nothing but powers of two was changed, and everywhere alike."""
        shifted = any(each.kind is Kind.SHIFTED_WEIGHT for each in self.exponents)
        return not (self.loose or self.broken or shifted)


def choose(
    scales: Scales,
    *,
    peaks: Mapping[tuple[str, str, int], float],
    limit: float,
    headroom_bits: float,
    may_break: bool = False,
) -> Choice:
    """The powers of two, and how well everything fits then.

    Args:
        scales: what ties them to one another.
        peaks: largest magnitude of each operation's result, by module, operation and how often it
            ran there before.
        limit: largest finite value of the dtype.
        headroom_bits: bits to be left, where that is possible.
        may_break: equations may be broken, at a high price.
    """
    sizes = _sizes(scales.scaled, peaks)
    program = _Program(may_break=may_break)
    for equation in scales.equations:
        program.hold(equation)
    for form, (abs_max, _) in sizes.items():
        if form:
            program.bound(form, bits=math.log2(limit / abs_max) - headroom_bits)
    exponents = program.solve()
    violated = [each for each in scales.equations if each.form.value(exponents)]
    fits = tuple(
        _fit(scaled, abs_max, limit=limit, exponents=exponents)
        for abs_max, scaled in sizes.values()
    )
    return Choice(
        exponents={unknown: power for unknown, power in exponents.items() if power},
        fits=fits,
        loose=tuple(each for each in violated if _is_loosable(each)),
        broken=tuple(each for each in violated if not _is_loosable(each)),
    )


def _fit(scaled: Scaled, abs_max: float, *, limit: float, exponents: dict[Unknown, int]) -> Fit:
    before = math.log2(limit / abs_max)
    after = before - scaled.form.value(exponents)
    return Fit(scaled=scaled, abs_max=abs_max, before_bits=before, after_bits=after)


def _sizes(
    scaled: Iterable[Scaled], peaks: Mapping[tuple[str, str, int], float]
) -> dict[Form, tuple[float, Scaled]]:
    """For each form, the largest result that is scaled so."""
    of_op: dict[tuple[str, str], float] = {}
    for (module, op, _), abs_max in peaks.items():
        of_op[module, op] = max(abs_max, of_op.get((module, op), 0.0))
    found: dict[Form, tuple[float, Scaled]] = {}
    for each in scaled:
        abs_max = peaks.get(each.key) or of_op.get(each.key[:2], 0.0)
        if abs_max > found.get(each.form, (0.0, each))[0]:
            found[each.form] = (abs_max, each)
    return found


def _is_loosable(equation: Equation) -> bool:
    """A norm whose epsilon is not scaled is wrong by the epsilon's share of its variance."""
    return equation.reason is Reason.EPSILON


class _Program:
    """The integer program, as it is written down."""

    def __init__(self, *, may_break: bool) -> None:
        # most commands need no solver
        import highspy

        class Silent(highspy.Highs):
            """Says nothing: the library greets on stdout as soon as it has callbacks."""

            def enableCallbacks(self) -> None:  # noqa: N802  the library's spelling
                self.silent()
                super().enableCallbacks()  # type: ignore[no-untyped-call]

        self._solver = Silent()  # type: ignore[no-untyped-call]
        self._integer = highspy.HighsVarType.kInteger
        self._may_break = may_break
        self._ups: dict[Unknown, highspy.highs.highs_var] = {}
        self._downs: dict[Unknown, highspy.highs.highs_var] = {}

    def hold(self, equation: Equation) -> None:
        """The equation has to hold, or costs what it costs to break it."""
        total = self._sum(equation.form)
        if _is_loosable(equation) or self._may_break:
            price = _LOOSE_EPSILON if _is_loosable(equation) else _BROKEN
            total = total + self._slack(price) - self._slack(price)
        self._solver.addConstr(total == 0)

    def bound(self, form: Form, *, bits: float) -> None:
        """The form is at most so much; each bit above it costs."""
        self._solver.addConstr(self._sum(form) - self._slack(_MISSING_BIT) <= bits)

    def solve(self) -> dict[Unknown, int]:
        """The exponents; all zero is always allowed, so there is a solution."""
        self._solver.minimize()
        return {
            each: round(self._solver.val(self._ups[each]) - self._solver.val(self._downs[each]))
            for each in self._ups
        }

    def _slack(self, price: float) -> highspy.highs.highs_var:
        slack: highspy.highs.highs_var = self._solver.addVariable(lb=0.0, obj=price)
        return slack

    def _sum(self, form: Form) -> highspy.highs.highs_linear_expression:
        return self._solver.qsum(
            factor * (self._up(unknown) - self._downs[unknown]) for unknown, factor in form.terms
        )

    def _up(self, unknown: Unknown) -> highspy.highs.highs_var:
        if unknown not in self._ups:
            price = _PRICES[unknown.kind]
            least = -MOST_BITS if unknown.least is None else unknown.least
            for side, most in ((self._ups, MOST_BITS), (self._downs, -least)):
                side[unknown] = self._solver.addVariable(
                    lb=0.0, ub=most, obj=price, type=self._integer
                )
        return self._ups[unknown]
