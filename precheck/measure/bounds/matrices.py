"""Norms of matrices, bounded from above: each is certain, not an estimate from below."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.rounding import OUTWARD

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


def forms_of(image: Image) -> Tensor:
    """The forms of an image of one dimension, scaled: ``(elements, size)``, float64."""
    rows = image.rows
    if rows.matrix is not None:
        return rows.matrix[image.index] * image.scale.unsqueeze(1)
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
