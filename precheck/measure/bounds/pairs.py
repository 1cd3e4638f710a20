"""Gated products ``act(gate) * up``, and what ``down_proj`` makes of them.

With forms ``a`` and ``b`` over one vector ``u``, ``|u| <= r``, and ``|act(x)| <= |x|``:

- one lane: ``sup |a.u| |b.u| = r^2 (|a| |b| + |a.b|) / 2``, attained between the directions of a
  and b; constants are added;
- a weighted sum over lanes: ``sum_j d_j |a_j.u| |b_j.u| <= r^2 |D^1/2 A| |D^1/2 B|`` in spectral
  norms, by Cauchy and Schwarz. ``|D^1/2 A|^2`` is the largest eigenvalue of ``D^1/2 A A' D^1/2``,
  which its Frobenius norm ``sqrt(d' (A A')^2 d)`` majorises (squares element by element): one
  product for all rows ``d`` of the weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.matrices import forms_of, weighted_frobenius
from precheck.measure.bounds.rounding import OUTWARD, gamma

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.bounds.forms import Image


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
    first: Image, second: Image, rest: Tensor, weight: Tensor, error: float
) -> Tensor:
    """``sup |w @ (first * second)|`` for each row of a weight, ``(m,)``.

    Args:
        first: of one dimension, ``(k,)``, over one vector.
        second: the same, over the same vector.
        rest: what is added to each product at most, ``(k,)``.
        weight: ``(m, k)``, float32 or float64.
        error: the relative error of the sums.
    """
    magnitudes = weight.abs().double()
    norms = [
        _weighted_norms(image, magnitudes) * image.radius
        + (magnitudes @ (image.offset.abs() + image.error).square()).sqrt()
        for image in (first, second)
    ]
    return (norms[0] * norms[1] + magnitudes @ rest) * (1.0 + error) * OUTWARD


def _weighted_norms(image: Image, weights: Tensor) -> Tensor:
    """``|D_j^1/2 A|`` at most, for each row ``D_j`` of ``weights``, ``(m,)``."""
    forms = forms_of(image)
    trace = weights @ torch.linalg.vector_norm(forms, dim=1).square()
    return torch.minimum(trace * OUTWARD, weighted_frobenius(forms, weights)).sqrt() * OUTWARD
