"""The raw attention scores that a fused kernel never materialises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


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
    for row in range(batch):  # a row at a time: seq x seq scores of every row would be large
        low, high = torch.aminmax(grouped[row] @ key[row].transpose(-1, -2))
        largest = max(largest, abs(float(low)), abs(float(high)))
    return largest if largest < float("inf") else None
