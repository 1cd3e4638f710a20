"""The raw attention scores that a fused kernel never materialises, and what it sums up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.watch.segment import FusedCall


MOST_SCORES = 1 << 26
"""Computed at once: 256 MiB in float32."""


def raw_score_abs_max(query: Tensor, key: Tensor) -> float | None:
    """Largest ``|q . k|`` before scaling, which eager attention would have to store.

    Args:
        query: ``(batch, heads, seq, head_dim)``, float32.
        key: ``(batch, kv_heads, kv_seq, head_dim)``, float32; ``kv_heads`` divides ``heads``.

    Returns:
        None where the shapes do not fit together, or a score is not finite.
    """
    if query.dim() != 4 or key.dim() != 4 or query.shape[1] % key.shape[1]:  # noqa: PLR2004
        return None
    largest = 0.0
    kv_heads, num_keys = key.shape[1:3]
    step = max(1, MOST_SCORES // max(1, kv_heads * num_keys))
    for row in range(len(key)):  # a few at a time: seq x seq scores of every row would be large
        grouped = query[row].reshape(kv_heads, -1, query.shape[-1])
        for queries in grouped.split(step, dim=1):
            low, high = torch.aminmax(queries @ key[row].transpose(-1, -2))
            largest = max(largest, abs(float(low)), abs(float(high)))
    return largest if largest < float("inf") else None


def _scores(query: Tensor, key: Tensor, row: int) -> Tensor:
    """Raw scores of a row, ``(kv_heads, heads / kv_heads * seq, kv_seq)``."""
    grouped = query[row].reshape(key.shape[1], -1, query.shape[-1])
    return grouped @ key[row].transpose(-1, -2)


def value_sum(call: FusedCall) -> float | None:
    """The largest sum of values before it is divided by the sum of weights.

    The weights are relative to the largest of their query, so it is the output times the sum of
    ``exp(score - largest score)``.

    Returns:
        None where it fits into float16 whatever the scores are, and where the scores are not known.
    """
    num_keys = call.key.shape[-2]
    largest = float(call.value.abs().max())
    if not num_keys * largest > Dtype.FLOAT16.limits.max or call.query.dim() != 4:  # noqa: PLR2004
        return None
    found = 0.0
    for row in range(len(call.key)):
        scores = _scores(call.query, call.key, row).mul_(call.factor)
        scores = scores.reshape(call.query.shape[1], -1, num_keys)
        scores = _masked(scores, call, row)
        totals = (scores - scores.amax(-1, keepdim=True)).exp_().sum(-1)
        found = max(found, float((call.output[row].abs().amax(-1) * totals).max()))
    return found if math.isfinite(found) else None


def _masked(scores: Tensor, call: FusedCall, row: int) -> Tensor:
    """Scores of a row, ``(heads, seq, kv_seq)``, with what each query may not see at -inf."""
    if call.is_causal:
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill(future, -torch.inf)
    if call.mask is None:
        return scores
    mask = call.mask[row if call.mask.shape[0] > 1 else 0] if call.mask.dim() == 4 else call.mask  # noqa: PLR2004
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
