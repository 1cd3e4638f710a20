"""The raw attention scores that a fused kernel never materialises, and what it sums up."""

from __future__ import annotations

import math
from itertools import product
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
    rows, heads, num_queries = call.query.shape[:3]
    step = max(1, MOST_SCORES // (4 * num_keys))  # there are three or four copies of them
    found = 0.0
    for row, head, start in product(range(rows), range(heads), range(0, num_queries, step)):
        queries = slice(start, min(start + step, num_queries))
        scores = _masked_scores(call, row, head, queries)
        totals = scores.sub_(scores.amax(-1, keepdim=True)).exp_().sum(-1)
        sums = call.output[row, head, queries].abs().amax(-1) * totals
        found = max(found, float(sums.max()))
    return found if math.isfinite(found) else None


def _masked_scores(call: FusedCall, row: int, head: int, queries: slice) -> Tensor:
    """Scores of some queries of a head, ``(queries, kv_seq)``; what they may not see is -inf."""
    heads, num_queries = call.query.shape[1:3]
    kv_heads, num_keys = call.key.shape[1:3]
    keys = call.key[row, head * kv_heads // heads]
    scores = (call.query[row, head, queries] @ keys.T).mul_(call.factor)
    if call.is_causal:
        place = torch.arange(num_keys, device=scores.device)
        scores.masked_fill_(place > place[queries].unsqueeze(1), -torch.inf)
    if call.mask is None:
        return scores
    mask = call.mask[min(row, len(call.mask) - 1)] if call.mask.dim() == 4 else call.mask  # noqa: PLR2004
    mask = mask.expand(heads, num_queries, num_keys)[head, queries]
    return scores.masked_fill_(~mask, -torch.inf) if mask.dtype is torch.bool else scores.add_(mask)
