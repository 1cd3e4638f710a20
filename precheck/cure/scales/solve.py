"""Chooses exponents that bring every result into range: the fewest and smallest that do.

An integer linear program. The equations hold, each result fits with some bits to spare, and the
exponents, weighted by kind, have the smallest sum. Missing bits and broken equations have slack
variables with a high price, so there is always a solution: which slacks it uses says what does not
fit, or what stands in the way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import highspy

from precheck.cure.scales.forms import Kind, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from precheck.cure.scales.forms import Equation, Form, ScaledResult, Scales, Unknown

MOST_BITS = 24
"""The largest exponent: float16 has 40 powers of two in all, subnormal ones among them."""

_MISSING_BIT = 1e6
"""Price of a missing bit of headroom, where an exponent of one parameter costs 1."""
_LOOSE_EPSILON = 20.0
"""Price of an epsilon that is not scaled with its norm: more than to scale some weights."""
_SHIFTED = 8.0
"""Price of an exponent of ``1 + w``, which is rounded: a few plain weights are cheaper."""
_BROKEN = 1e3
"""Price of a broken equation, where that is allowed: more than any exact solution."""

_PRICES = {Kind.WEIGHT: 1.0, Kind.SHIFTED_WEIGHT: _SHIFTED, Kind.SETTING: 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultHeadroom:
    """The headroom of a result, as measured and as predicted."""

    result: ScaledResult
    abs_max: float
    """As measured, before anything is scaled."""
    before_bits: float
    """As measured; negative where the result does not fit."""
    after_bits: float
    """As predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The exponents, and what follows from them."""

    exponents: dict[Unknown, int]
    """Those that are not 0."""
    headroom: tuple[ResultHeadroom, ...]
    """A row for each form: the largest of the results that have it."""
    loose: tuple[Equation, ...]
    """Epsilons that are not scaled with the variance they are added to."""
    broken: tuple[Equation, ...]
    """Other equations that do not hold; only where that is allowed."""

    @property
    def overflowing(self) -> tuple[ResultHeadroom, ...]:
        """Results that would still not fit."""
        return tuple(row for row in self.headroom if row.after_bits < 0)

    @property
    def is_exact(self) -> bool:
        """Whether all equations hold and no weight is rounded."""
        has_shifted = any(unknown.kind is Kind.SHIFTED_WEIGHT for unknown in self.exponents)
        return not (self.loose or self.broken or has_shifted)


def choose(
    scales: Scales,
    *,
    peaks: Mapping[tuple[str, str, int], float],
    limit: float,
    headroom_bits: float,
    may_break: bool = False,
) -> Choice:
    """The exponents, and the headroom that results have with them.

    Args:
        scales: equations and results of the model.
        peaks: largest magnitude of each operation's result, by module, operation and how often it
            ran there before.
        limit: largest finite value of the dtype.
        headroom_bits: bits to be left, where that is possible.
        may_break: equations may be broken, at a high price.
    """
    largest = _largest_by_form(scales.results, peaks)
    program = _Program(may_break=may_break)
    for equation in scales.equations:
        program.add_equation(equation)
    for form, (abs_max, _) in largest.items():
        if form:
            program.add_bound(form, bits=math.log2(limit / abs_max) - headroom_bits)
    exponents = program.solve()
    violated = [equation for equation in scales.equations if equation.form.value(exponents)]
    return Choice(
        exponents={unknown: power for unknown, power in exponents.items() if power},
        headroom=tuple(
            _headroom(result, abs_max, limit=limit, exponents=exponents)
            for abs_max, result in largest.values()
        ),
        loose=tuple(equation for equation in violated if _is_epsilon(equation)),
        broken=tuple(equation for equation in violated if not _is_epsilon(equation)),
    )


def _headroom(
    result: ScaledResult, abs_max: float, *, limit: float, exponents: dict[Unknown, int]
) -> ResultHeadroom:
    before = math.log2(limit / abs_max)
    after = before - result.form.value(exponents)
    return ResultHeadroom(result=result, abs_max=abs_max, before_bits=before, after_bits=after)


def _largest_by_form(
    results: Iterable[ScaledResult], peaks: Mapping[tuple[str, str, int], float]
) -> dict[Form, tuple[float, ScaledResult]]:
    """For each form, the result that has it and was largest.

    An operation that was not measured with this count is taken for the largest of its module.
    """
    op_peaks: dict[tuple[str, str], float] = {}
    for (module, op, _), abs_max in peaks.items():
        op_peaks[module, op] = max(abs_max, op_peaks.get((module, op), 0.0))
    largest: dict[Form, tuple[float, ScaledResult]] = {}
    for result in results:
        abs_max = peaks.get(result.key) or op_peaks.get(result.key[:2], 0.0)
        if abs_max > largest.get(result.form, (0.0, result))[0]:
            largest[result.form] = (abs_max, result)
    return largest


def _is_epsilon(equation: Equation) -> bool:
    """An equation that may always be broken.

    A norm whose epsilon is not scaled is wrong by the epsilon's share of its variance only.
    """
    return equation.reason is Reason.EPSILON


class _SilentHighs(highspy.Highs):
    """The library prints a banner as soon as it has callbacks."""

    def enableCallbacks(self) -> None:  # noqa: N802  the library's spelling
        self.silent()
        super().enableCallbacks()  # type: ignore[no-untyped-call]


class _Program:
    """The integer program.

    The objective needs absolute values, so each unknown is the difference of two variables, up and
    down, that are not negative and have the same price.
    """

    def __init__(self, *, may_break: bool) -> None:
        self._solver = _SilentHighs()  # type: ignore[no-untyped-call]
        self._may_break = may_break
        self._ups: dict[Unknown, highspy.highs.highs_var] = {}
        self._downs: dict[Unknown, highspy.highs.highs_var] = {}

    def add_equation(self, equation: Equation) -> None:
        """Requires the equation, or charges the price of breaking it."""
        total = self._sum(equation.form)
        if _is_epsilon(equation) or self._may_break:
            price = _LOOSE_EPSILON if _is_epsilon(equation) else _BROKEN
            total = total + self._slack(price) - self._slack(price)
        self._solver.addConstr(total == 0)

    def add_bound(self, form: Form, *, bits: float) -> None:
        """Requires the form to be at most ``bits``, or charges each bit above it."""
        self._solver.addConstr(self._sum(form) - self._slack(_MISSING_BIT) <= bits)

    def solve(self) -> dict[Unknown, int]:
        """The exponents; all zero is feasible, so there is a solution."""
        self._solver.minimize()
        return {
            unknown: round(
                self._solver.val(self._ups[unknown]) - self._solver.val(self._downs[unknown])
            )
            for unknown in self._ups
        }

    def _slack(self, price: float) -> highspy.highs.highs_var:
        slack: highspy.highs.highs_var = self._solver.addVariable(lb=0.0, obj=price)
        return slack

    def _sum(self, form: Form) -> highspy.highs.highs_linear_expression:
        return self._solver.qsum(
            coefficient * (self._up(unknown) - self._downs[unknown])
            for unknown, coefficient in form.terms
        )

    def _up(self, unknown: Unknown) -> highspy.highs.highs_var:
        if unknown not in self._ups:
            price = _PRICES[unknown.kind]
            least = -MOST_BITS if unknown.least is None else unknown.least
            for variables, most in ((self._ups, MOST_BITS), (self._downs, -least)):
                variables[unknown] = self._solver.addVariable(
                    lb=0.0, ub=most, obj=price, type=highspy.HighsVarType.kInteger
                )
        return self._ups[unknown]
