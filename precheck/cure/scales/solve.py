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

from precheck.cure.scales.forms import Form, Kind, Reason
from precheck.cure.scales.prices import (
    BROKEN,
    INEXACT,
    LOST_BIT,
    MISSING_BIT,
    RESULT_MARGIN_BITS,
    SMALL_RESULT,
    WEIGHT_MARGIN_BITS,
    epsilon_prices,
    exponent_prices,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from precheck.cure.scales.forms import Equation, ScaledResult, Scales, Unknown
    from precheck.cure.scales.prices import EpsilonPrice
    from precheck.cure.scales.weight_ranges import WeightRange
    from precheck.measure.watch.peaks import Peaks
    from precheck.records.precision import Limits

MOST_BITS = 24
"""The largest exponent: float16 has 40 powers of two in all, subnormal ones among them."""

_MOST_LOOSE = 4.0 * MOST_BITS
"""More than a variance changes by."""


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
    changes_norms: bool
    """Some of these are more than nothing beside their variance."""
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
    peaks: Peaks,
    limits: Limits,
    headroom_bits: float,
    weights: Mapping[Unknown, WeightRange] | None = None,
    keeps_settings: bool = False,
    may_break: bool = False,
) -> Choice:
    """The exponents, and the headroom that results have with them.

    Args:
        scales: equations and results of the model.
        peaks: largest magnitudes of each operation's result.
        limits: of the dtype.
        headroom_bits: bits to be left, where that is possible.
        weights: how large the stored weights are, which have to fit too.
        keeps_settings: no number of the config changes.
        may_break: equations may be broken, at a high price.
    """
    largest = _largest_by_form(scales.results, peaks)
    room = {
        form: math.log2(limits.max / abs_max) - headroom_bits
        for form, (abs_max, _) in largest.items()
    }
    needed_bits = -min(room.values(), default=0.0)
    program = _Program(keeps_settings=keeps_settings)
    epsilons = {
        equation: epsilon_prices(equation, peaks, needed_bits=needed_bits)
        for equation in scales.equations
        if equation.reason is Reason.EPSILON
    }
    for equation in scales.equations:
        if equation in epsilons:
            program.add_epsilon(equation.form, epsilons[equation])
        else:
            program.add_equation(equation.form, BROKEN if may_break else None)
    smallest_bits = math.log2(limits.smallest_normal)
    for form, (abs_max, _) in largest.items():
        if form:
            program.add_bound(form, bits=room[form])
            # what was smaller before need not become larger
            least = min(0.0, smallest_bits + RESULT_MARGIN_BITS - math.log2(abs_max))
            program.add_floor(form, bits=least, price=SMALL_RESULT)
    for unknown, weight in (weights or {}).items():
        form = Form.of(unknown)
        if weight.abs_max:
            program.add_bound(form, bits=math.log2(limits.max / weight.abs_max))
        if weight.root_mean_square:
            least = smallest_bits + WEIGHT_MARGIN_BITS - math.log2(weight.root_mean_square)
            program.add_floor(form, bits=least, price=LOST_BIT)
    exponents = program.solve()
    violated = [equation for equation in scales.equations if equation.form.value(exponents)]
    return Choice(
        exponents={unknown: power for unknown, power in exponents.items() if power},
        headroom=tuple(
            _headroom(result, abs_max, limit=limits.max, exponents=exponents)
            for abs_max, result in largest.values()
        ),
        loose=tuple(one for one in violated if one in epsilons),
        changes_norms=any(
            epsilons[one][0 if one.form.value(exponents) > 0 else 1].is_inexact
            for one in violated
            if one in epsilons
        ),
        broken=tuple(one for one in violated if one not in epsilons),
    )


def _headroom(
    result: ScaledResult, abs_max: float, *, limit: float, exponents: dict[Unknown, int]
) -> ResultHeadroom:
    before = math.log2(limit / abs_max)
    after = before - result.form.value(exponents)
    return ResultHeadroom(result=result, abs_max=abs_max, before_bits=before, after_bits=after)


def _largest_by_form(
    results: Iterable[ScaledResult], peaks: Peaks
) -> dict[Form, tuple[float, ScaledResult]]:
    """For each form, the result that has it and was largest."""
    largest: dict[Form, tuple[float, ScaledResult]] = {}
    for result in results:
        abs_max = peaks.of(result.key, result.elements)
        if abs_max > largest.get(result.form, (0.0, result))[0]:
            largest[result.form] = (abs_max, result)
    return largest


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

    def __init__(self, *, keeps_settings: bool) -> None:
        self._solver = _SilentHighs()  # type: ignore[no-untyped-call]
        self._keeps_settings = keeps_settings
        self._ups: dict[Unknown, highspy.highs.highs_var] = {}
        self._downs: dict[Unknown, highspy.highs.highs_var] = {}
        self._is_inexact = self._solver.addVariable(
            lb=0.0, ub=1.0, obj=INEXACT, type=highspy.HighsVarType.kInteger
        )

    def add_equation(self, form: Form, price: float | None) -> None:
        """Requires the form to be 0, or charges what it is."""
        total = self._sum(form)
        if price is not None:
            total = total + self._slack(price) - self._slack(price)
        self._solver.addConstr(total == 0)

    def add_epsilon(self, form: Form, prices: tuple[EpsilonPrice, EpsilonPrice]) -> None:
        """Charges what the form is above and below 0, and once for all that is inexact."""
        above, below = (self._slack(price.price) for price in prices)
        self._solver.addConstr(self._sum(form) - above + below == 0)
        for slack, price in zip((above, below), prices, strict=True):
            if price.is_inexact:
                self._solver.addConstr(slack - _MOST_LOOSE * self._is_inexact <= 0)

    def add_bound(self, form: Form, *, bits: float) -> None:
        """Requires the form to be at most ``bits``, or charges each bit above it."""
        self._solver.addConstr(self._sum(form) - self._slack(MISSING_BIT) <= bits)

    def add_floor(self, form: Form, *, bits: float, price: float) -> None:
        """Charges each bit by which the form is less than ``bits``."""
        self._solver.addConstr(self._sum(form) + self._slack(price) >= bits)

    def solve(self) -> dict[Unknown, int]:
        """The exponents; all zero is feasible, so there is a solution."""
        self._solver.minimize()
        values = list(self._solver.getSolution().col_value)  # one by one they are copied each time
        return {
            unknown: round(values[up.index] - values[self._downs[unknown].index])
            for unknown, up in self._ups.items()
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
            least = -MOST_BITS if unknown.least is None else unknown.least
            prices = exponent_prices(unknown.kind)
            is_kept = self._keeps_settings and unknown.kind is Kind.SETTING
            both = ((self._ups, MOST_BITS), (self._downs, -least))
            for price, (variables, most) in zip(prices, both, strict=True):
                variables[unknown] = self._solver.addVariable(
                    lb=0.0,
                    ub=0 if is_kept else most,
                    obj=price,
                    type=highspy.HighsVarType.kInteger,
                )
        return self._ups[unknown]
