"""Gated products ``act(gate) * up``, and what ``down_proj`` makes of them.

With forms ``a`` and ``b`` over one vector ``u``, ``|u| <= r``, and ``|act(x)| <= |x|``:

- one lane: ``sup |a.u| |b.u| = r^2 (|a| |b| + |a.b|) / 2``, attained between the directions of a
  and b; constants are added;
- a weighted sum over lanes: ``sum_j d_j |a_j.u| |b_j.u| <= r^2 |D^1/2 A| |D^1/2 B|`` in spectral
  norms, by Cauchy and Schwarz. ``|D^1/2 A|^2`` is the largest eigenvalue of ``D^1/2 A A' D^1/2``,
  which its Frobenius norm ``sqrt(d' (A A')^2 d)`` majorises (squares element by element): one
  product for all rows ``d`` of the weight;
- refined, a row at a time: with ``2 |x| |y| <= t x^2 + y^2 / t`` the same sum is at most
  ``r^2 / 2`` times the largest eigenvalue of ``t A'DA + B'DB / t``, for any t. With the ratio of
  both norms that is at most their product: both are largest for one vector only where they agree.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from precheck.measure.bounds.matrices import forms_of, largest_eigenvalue, weighted_frobenius
from precheck.measure.bounds.rounding import OUTWARD, gamma

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.measure.bounds.forms import Image


class Refinement:
    """Time in which large bounds are looked at once more, by eigenvalues.

    Args:
        minutes: to spend on them, over all operations.
    """

    def __init__(self, minutes: float = 0.0) -> None:
        self._seconds = 60.0 * minutes

    def wanted(self, limit: float) -> float:
        """Which bounds are small enough, where ``limit`` fits.

        With time left an eighth of it: what layers add to a residual stream adds up.
        """
        return limit / 8 if self._seconds > 0 else limit

    def refined(self, bounds: Tensor, *, wanted: float, bound_of: Callable[[int], float]) -> Tensor:
        """Smaller bounds for the largest ones, the largest first.

        An operation takes an eighth of the time that is left, so that some is left for others.

        Args:
            bounds: of all rows, ``(m,)``.
            wanted: bounds that are no larger are left alone.
            bound_of: the refined bound of a row.
        """
        refined = bounds.clone()
        began, seconds = time.monotonic(), self._seconds / 8
        for row in bounds.argsort(descending=True).tolist():
            if bounds[row] <= wanted or time.monotonic() - began >= seconds:
                break
            refined[row] = min(float(bounds[row]), bound_of(row))
        self._seconds -= time.monotonic() - began
        return refined


def pair_bound(first: Image, second: Image) -> Tensor:
    """``sup |first| |second|``, element by element.

    The images have forms over the same vectors, and any shape.
    """
    a, b = first.linear_bound, second.linear_bound
    radius = first.radius * second.radius
    dots = _dots(first, second).abs() * (first.scale * second.scale).abs() * radius
    linear = (a * b + torch.minimum(dots, a * b)) / 2
    rest_a, rest_b = first.offset.abs() + first.error, second.offset.abs() + second.error
    return (linear + a * rest_b + b * rest_a + rest_a * rest_b) * OUTWARD


def _dots(first: Image, second: Image) -> Tensor:
    """``a . b`` of the forms of each element, without their scales, at most in magnitude."""
    rows, others = first.rows, second.rows
    if rows.matrix is None and others.matrix is None:
        return (first.index == second.index).to(torch.float64)
    products = rows.lengths[first.index] * others.lengths[second.index]
    pairs, places = torch.unique(first.index * (1 << 31) + second.index, return_inverse=True)
    left, right = pairs >> 31, pairs & ((1 << 31) - 1)
    if rows.matrix is None or others.matrix is None:
        matrix, column = (others.matrix, left) if rows.matrix is None else (rows.matrix, right)
        assert matrix is not None  # noqa: S101  one of both
        dots = matrix[right if rows.matrix is None else left, column].double()
    else:
        dots = (rows.matrix[left] * others.matrix[right]).sum(1).double()
    lost = gamma(rows.size + 1, torch.float32)  # of their float32 products
    return dots[places].abs() + products * lost + rows.size * 2.0**-120


def paired_product(
    first: Image,
    second: Image,
    rest: Tensor,
    weight: Tensor,
    error: float,
    *,
    wanted: float,
    refinement: Refinement,
) -> Tensor:
    """``sup |w @ (first * second)|`` for each row of a weight, ``(m,)``.

    Args:
        first: of one dimension, ``(k,)``, over one vector.
        second: the same, over the same vector.
        rest: what is added to each product at most, ``(k,)``.
        weight: ``(m, k)``, float32 or float64.
        error: the relative error of the sums.
        wanted: larger bounds are refined.
        refinement: as long as there is time for it.
    """
    magnitudes = weight.abs().double()
    norms = [_weighted_norms(image, magnitudes) * image.radius for image in (first, second)]
    constants = [
        (magnitudes @ (image.offset.abs() + image.error).square()).sqrt()
        for image in (first, second)
    ]
    linear = norms[0] * norms[1]
    others = norms[0] * constants[1] + norms[1] * constants[0] + constants[0] * constants[1]
    others += magnitudes @ rest
    outward = (1.0 + error) * OUTWARD

    def bound_of(row: int) -> float:
        least = min(float(linear[row]), _by_eigenvalue(first, second, magnitudes[row]))
        return (least + float(others[row])) * outward

    return refinement.refined((linear + others) * outward, wanted=wanted, bound_of=bound_of)


def _by_eigenvalue(first: Image, second: Image, weights: Tensor) -> float:
    """``sup sum_j d_j |first_j| |second_j|`` of the linear parts, for one row of weights."""
    roots = weights.sqrt().unsqueeze(1)
    both = [forms_of(image) * roots * image.radius for image in (first, second)]
    sizes = [_estimated_norm(forms) for forms in both]
    ratio = sizes[1] / sizes[0] if min(sizes) > 0 else 1.0  # any ratio gives a bound
    gram = both[0].T @ both[0] * (ratio / 2) + both[1].T @ both[1] / (2 * ratio)
    lost = float(gram.diagonal().sum()) * gamma(2 * len(weights) + 8, torch.float64)
    return largest_eigenvalue(gram) + lost


def _estimated_norm(matrix: Tensor, *, num_steps: int = 16) -> float:
    """Its spectral norm, about: by the power method."""
    vector = matrix[int(torch.linalg.vector_norm(matrix, dim=1).argmax())]
    for _ in range(num_steps):
        vector = matrix.T @ (matrix @ nn.functional.normalize(vector, dim=0))
    return float(torch.linalg.vector_norm(vector).sqrt())


def _weighted_norms(image: Image, weights: Tensor) -> Tensor:
    """``|D_j^1/2 A|`` at most, for each row ``D_j`` of ``weights``, ``(m,)``."""
    forms = forms_of(image)
    trace = weights @ torch.linalg.vector_norm(forms, dim=1).square()
    return torch.minimum(trace * OUTWARD, weighted_frobenius(forms, weights)).sqrt() * OUTWARD
