"""Scales that ggml's K-quants find by trying many.

Each group of numbers gets the scale, and the offset, of the least weighted squared error among a
few. Sums run over a group in order, one number at a time, as ggml's do: another order of the same
terms sometimes finds another scale. Groups are taken a few thousand at a time, so that they stay in
the cache of the processor. A million numbers take half a second on one thread.

**Source**: ``make_qkx2_quants`` and ``make_qx_quants``, called without an importance matrix, in
https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.measure.formats.super_blocks import divided

if TYPE_CHECKING:
    from torch import Tensor

_NUM_GROUPS = 8192
"""At a time."""
_TRIED_AROUND = 0.1
"""Distance of the scales that are tried, in integers of the largest number."""
_NEGLIGIBLE = 1e-15
"""A group whose numbers are below it has no scale (``GROUP_MAX_EPS``)."""


def scales_and_offsets(groups: Tensor, *, highest: int) -> tuple[Tensor, Tensor]:
    """Of every group: the scale, and what integer zero stands for, which is not positive.

    Args:
        groups: ``(..., group, number)``, in float32.
        highest: integer; the lowest is zero.
    """
    parts = [
        _best_line(part.T.contiguous(), highest=highest)
        for part in groups.flatten(0, -2).split(_NUM_GROUPS)
    ]
    scales, offsets = (torch.cat(each).view(groups.shape[:-1]) for each in zip(*parts, strict=True))
    return scales, offsets


def _best_line(columns: Tensor, *, highest: int) -> tuple[Tensor, Tensor]:
    mean_square = _in_order(columns * columns).div_(len(columns))
    # torch's own root of float32 is an ulp off here and there, which C's is not
    weights = columns.abs().add_(mean_square.double().sqrt_().float())
    sum_w, sum_x = _in_order(weights), _in_order(weights * columns)
    top, offset = columns.amax(0), columns.amin(0).clamp_(max=0.0)
    is_flat, flat = top == offset, offset
    inverse = divided(highest, top - offset)
    scale = 1 / inverse
    error = _error(columns, weights, _codes(columns, offset, inverse, highest), scale, offset)
    for tried in (torch.arange(21.0) * _TRIED_AROUND - 1 + highest).tolist():
        codes = _codes(columns, offset, divided(tried, top - offset), highest)
        weighted = weights * codes
        sum_l, sum_l2 = _in_order(weighted), _in_order(weighted * codes)
        sum_xl = _in_order(weighted.mul_(columns))
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        new_scale = torch.where(new_offset > 0, sum_xl / sum_l2, new_scale)
        new_offset = new_offset.clamp_(max=0.0)
        new_error = _error(columns, weights, codes, new_scale, new_offset)
        is_better = (determinant > 0) & (new_error < error)
        error = torch.where(is_better, new_error, error)
        scale = torch.where(is_better, new_scale, scale)
        # The next scale is tried from the best offset so far.
        offset = torch.where(is_better, new_offset, offset)
    return torch.where(is_flat, 0.0, scale), torch.where(is_flat, flat, offset)


def _codes(columns: Tensor, offset: Tensor, inverse: Tensor, highest: int) -> Tensor:
    return (columns - offset).mul_(inverse).round_().clamp_(0, highest)


def _error(
    columns: Tensor, weights: Tensor, codes: Tensor, scale: Tensor, offset: Tensor
) -> Tensor:
    differences = (codes * scale).add_(offset).sub_(columns)
    return _in_order(differences.square_().mul_(weights))


def signed_scales(groups: Tensor, *, highest: int) -> Tensor:
    """The scale of every group, which may be negative.

    Args:
        groups: ``(..., group, number)``, in float32.
        highest: integer; the lowest is one more below zero.
    """
    parts = groups.flatten(0, -2).split(_NUM_GROUPS)
    found = [_best_scale(part.T.contiguous(), highest=highest) for part in parts]
    return torch.cat(found).view(groups.shape[:-1])


def _best_scale(columns: Tensor, *, highest: int) -> Tensor:
    num_negative = highest + 1
    magnitudes = columns.abs()
    largest = columns.gather(0, magnitudes.argmax(0, keepdim=True)).squeeze(0)
    weighted = columns * columns * columns
    weights = columns * columns
    scale = best = torch.zeros_like(largest)
    for step in (0, *range(-9, 0), *range(1, 10)):
        tried = torch.tensor(float(step)).mul_(_TRIED_AROUND).add_(num_negative).item()
        codes = (columns * divided(-tried, largest)).round_().clamp_(-num_negative, highest)
        sum_xl = _in_order(weighted * codes)
        sum_l2 = _in_order(weights * codes * codes)
        is_better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        new_scale = sum_xl / sum_l2
        scale = torch.where(is_better, new_scale, scale)
        best = torch.where(is_better, new_scale * sum_xl, best)
    scale = torch.where(largest.abs() < _NEGLIGIBLE, 0.0, scale)
    return torch.where(largest.isfinite(), scale, math.nan)


def _in_order(columns: Tensor) -> Tensor:
    """The sum over the first dimension."""
    total = columns[0].clone()
    for column in columns[1:]:
        total.add_(column)
    return total
