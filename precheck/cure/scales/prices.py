"""What exponents cost in precision; an exponent of one plain weight costs 1."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from precheck.cure.scales.forms import Kind

if TYPE_CHECKING:
    from precheck.cure.scales.forms import Equation
    from precheck.measure.watch.peaks import Peaks

MISSING_BIT = 1e6
"""A missing bit of headroom."""
BROKEN = 1e3
"""A broken equation, where that is allowed: more than any exact solution."""
LOST_BIT = 8.0
"""A bit that weights are too small by: more than to make them larger, and smaller what feeds them:
two matrices and a bias or two."""
SMALL_RESULT = 1.0
"""A bit that a result is too small by."""

WEIGHT_MARGIN_BITS = 2.0
"""The root mean square of weights should be so far above the smallest normal number: then those
that are subnormal are so small beside the others that their lost digits do not count."""
RESULT_MARGIN_BITS = 8.0
"""The same for the largest value of a result."""

_UP = {Kind.WEIGHT: 1.0, Kind.SHIFTED_WEIGHT: 8.0, Kind.SETTING: 0.1}
_DOWN = {Kind.WEIGHT: 1.0, Kind.SHIFTED_WEIGHT: 10.0, Kind.SETTING: 0.1}
"""``1 + w`` is rounded, which a few plain weights are not; and ``w`` of a smaller one is near -1,
where it has the fewer digits the smaller the sum is."""

_UNMEASURED_EPSILON = 20.0
INEXACT = 500.0
"""Epsilons that change a norm, however many do: more than the exponents of most exact solutions."""
NO_ERROR = 2.0**-27
"""Less than this of a norm is lost in float32's rounding."""
_LEAST_EPSILON = 0.01
"""So that an epsilon is scaled unless something prevents it."""
_NORM_ERROR = 2e4
"""Of a norm that is wrong by all of its value: a thousandth costs as much as 20 exponents."""


class EpsilonPrice(NamedTuple):
    """Of an epsilon that is not scaled with its variance, by a power of two."""

    price: float
    is_inexact: bool
    """It changes what the norm gives."""


def exponent_prices(kind: Kind) -> tuple[float, float]:
    """The prices of a positive and of a negative exponent of 1."""
    return _UP[kind], _DOWN[kind]


def epsilon_prices(
    equation: Equation, peaks: Peaks, *, needed_bits: float
) -> tuple[EpsilonPrice, EpsilonPrice]:
    """The prices of an epsilon that is too small, and of one that is too large.

    What a norm is wrong by is half of what its epsilon is of the variance, as measured.

    Args:
        equation: the form is the exponent of the variance minus that of the epsilon.
        peaks: with the epsilons' shares.
        needed_bits: by how much results have to become smaller: variances change by twice that.
    """
    epsilon = equation.epsilon
    share = None if epsilon is None else peaks.shares.get(epsilon.key)
    if share is None:
        unknown = EpsilonPrice(price=_UNMEASURED_EPSILON, is_inexact=True)
        return unknown, unknown
    grown = share.mean * math.exp2(min(2 * needed_bits, 60.0))
    return _of_error(share.mean / 2), _of_error(grown / 2)


def _of_error(error: float) -> EpsilonPrice:
    price = min(BROKEN, _LEAST_EPSILON + _NORM_ERROR * error)
    return EpsilonPrice(price=price, is_inexact=error > NO_ERROR)
