"""Errors of floating-point arithmetic, bounded from above.

Bounds are computed in float64 and multiplied by ``OUTWARD``, which majorises the rounding of these
computations themselves: sums of up to 2^20 non-negative terms err by at most 2^20 * 2^-53 of their
value (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2).
"""

from __future__ import annotations

import torch

OUTWARD = 1.0 + 2.0**-30
"""Covers what float64 loses while bounds are computed."""
MOST_KEYS = 1 << 20
"""No text is longer: a sum over tokens has at most so many terms."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding to nearest: 2^-11 in float16."""
    return torch.finfo(dtype).eps / 2


def half_subnormal(dtype: torch.dtype) -> float:
    """The largest absolute error of rounding to a subnormal: 2^-25 in float16."""
    limits = torch.finfo(dtype)
    return limits.tiny * limits.eps / 2


def gamma(num_terms: int, dtype: torch.dtype) -> float:
    """The relative error of a sum of products, in any order, against the sum of magnitudes.

    ``n * u / (1 - n * u)``; infinite where ``n * u`` reaches 1. Each term is multiplied once and
    takes part in fewer than ``n`` additions.

    >>> gamma(1, torch.float16) == 2.0**-11 / (1 - 2.0**-11)
    True
    """
    error = num_terms * unit_roundoff(dtype)
    return error / (1.0 - error) if error < 1.0 else float("inf")


def largest(dtype: torch.dtype) -> float:
    """The largest finite value of a dtype."""
    return float(torch.finfo(dtype).max)
