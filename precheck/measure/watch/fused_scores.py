"""The raw attention scores that a fused kernel never materialises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


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
    batch, kv_heads = key.shape[:2]
    grouped = query.reshape(batch, kv_heads, -1, query.shape[-1])
    largest = 0.0
    step = max(1, MOST_SCORES // max(1, kv_heads * key.shape[2]))
    for row in range(batch):  # a few at a time: seq x seq scores of every row would be large
        for queries in grouped[row].split(step, dim=1):
            low, high = torch.aminmax(queries @ key[row].transpose(-1, -2))
            largest = max(largest, abs(float(low)), abs(float(high)))
    return largest if largest < float("inf") else None
