"""Norms of matrices, bounded from above: each is certain, not an estimate from below."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.rounding import OUTWARD, gamma

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.bounds.forms import Image

_EIGENVALUE_ERROR = 2.0**-40
"""Of the largest eigenvalue, against the trace: LAPACK's is some n * 2^-53 (Anderson et al.,
LAPACK Users' Guide, 1999, section 4.7); n is a head's size here, at most some thousands."""


def largest_eigenvalue(gram: Tensor) -> float:
    """The largest eigenvalue of a positive semidefinite matrix ``(n, n)`` in float64, at most.

    >>> largest_eigenvalue(torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)) < 2.00001
    True
    """
    trace = float(gram.diagonal().sum())
    if not trace < float("inf"):
        return float("inf")
    top = float(torch.linalg.eigvalsh(gram)[-1])
    return min(trace * OUTWARD, max(top, 0.0) * OUTWARD + trace * _EIGENVALUE_ERROR)


_BLOCK = 384
"""Rows of a Gram matrix that are computed at once: it is symmetric, so the rest is shorter."""
_UNDERFLOW = 2.0**-120
"""Covers what products of numbers up to 1 lose to underflow in float32, flushed to 0 or not."""


def lengths_of(matrix: Tensor) -> Tensor:
    """The euclidean norm of each row at most, of a float32 matrix: ``(rows,)``, float64."""
    size = matrix.shape[1]
    lengths: Tensor = torch.linalg.vector_norm(matrix, dim=1).double()
    return lengths * (1 + gamma(size + 4, torch.float32)) + math.sqrt(size) * 2.0**-60


def weighted_frobenius(forms: Tensor, weights: Tensor) -> Tensor:
    """``|D^1/2 F F' D^1/2|`` at most, in Frobenius norms, for each row ``D`` of the weights.

    The products are float32, which is twice as fast, and their errors are added: an element of
    ``F F'`` errs by ``gamma_size |f_i| |f_j|`` at most, so that the norm, which is a norm of those
    elements, errs by ``gamma_size sum_i d_i |f_i|^2``.

    Args:
        forms: ``F``, ``(count, size)``, float64.
        weights: not negative, ``(rows, count)``, float32 or float64.

    Returns:
        ``(rows,)``, float64.
    """
    count, size = forms.shape
    lengths = torch.linalg.vector_norm(forms, dim=1)
    longest = float(lengths.max())
    if not 0 < longest < math.inf:
        return torch.full((len(weights),), 0.0 if longest == 0 else math.inf, dtype=torch.float64)
    unit, held = (forms / longest).float(), weights.float()
    squares = torch.zeros(len(weights), dtype=torch.float64)
    for start in range(0, count, _BLOCK):
        gram = (unit[start : start + _BLOCK] @ unit[start:].T).square_()
        gram[:, _BLOCK:] *= 2  # and those below the diagonal
        sums = held[:, start : start + _BLOCK] @ gram
        squares += sums.mul_(held[:, start:]).sum(1)
    mass = weights.double().sum(1)
    lost = (mass + count).square() * _UNDERFLOW
    root = (squares * (1 + 2 * gamma(2 * count + 8, torch.float32)) + lost).sqrt()
    trace = weights.double() @ (lengths / longest).square()
    inexact = gamma(size + 4, torch.float32) * trace + size * _UNDERFLOW * mass
    bound: Tensor = (root + inexact) * longest**2 * OUTWARD
    return bound.nan_to_num(nan=math.inf, posinf=math.inf)


def forms_of(image: Image) -> Tensor:
    """The forms of an image of one dimension, scaled: ``(elements, size)``, float64."""
    rows = image.rows
    if rows.matrix is not None:
        return rows.matrix[image.index].double() * image.scale.unsqueeze(1)
    forms = torch.zeros(len(image.index), rows.size, dtype=torch.float64)
    forms[torch.arange(len(image.index)), image.index] = image.scale
    return forms


def spectral_norm(image: Image) -> float:
    """The norm of the vector that an image of one dimension is at most, over unit vectors ``u``.

    Its elements are all over the same vector; offsets and errors do not count.
    """
    if image.rows.matrix is None:
        squares = torch.zeros(image.rows.size, dtype=torch.float64)
        squares.index_add_(0, image.index, image.scale.square())
        return float(squares.max().sqrt()) * OUTWARD
    forms = forms_of(image)
    gram = forms @ forms.T if forms.shape[0] <= forms.shape[1] else forms.T @ forms
    return math.sqrt(largest_eigenvalue(gram)) * OUTWARD
