"""Sums of values inside fused attention, against float64, a few scores at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.measure.watch import fused_scores
from precheck.measure.watch.segment import FusedCall

if TYPE_CHECKING:
    from torch import Tensor

ROWS, HEADS, KV_HEADS, TOKENS, LANES = 2, 4, 2, 9, 8
NODE: Any = None
"""Of the call; nothing reads it."""


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def call_of(*, is_causal: bool, mask: Tensor | None) -> FusedCall:
    query, key = drawn(ROWS, HEADS, TOKENS, LANES), drawn(ROWS, KV_HEADS, TOKENS, LANES)
    value = 1e5 * drawn(ROWS, KV_HEADS, TOKENS, LANES + 1)
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=True
    )
    return FusedCall(NODE, query, key, value, output, mask, is_causal, None)


def in_float64(call: FusedCall) -> float:
    key = call.key.double().repeat_interleave(HEADS // KV_HEADS, dim=1)
    value = call.value.double().repeat_interleave(HEADS // KV_HEADS, dim=1)
    scores = call.query.double() @ key.transpose(-1, -2) * LANES**-0.5
    if call.is_causal:
        future = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    if call.mask is not None:
        seen = call.mask if call.mask.dtype is torch.bool else call.mask == 0
        scores = scores.masked_fill(~seen, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return float((weights @ value).abs().max())


def some_seen(*shape: int) -> Tensor:
    seen = drawn(*shape) > 0
    seen[..., 0] = True
    return seen


@pytest.mark.parametrize("most_scores", [1, 4 * 2 * TOKENS, 1 << 26])
@pytest.mark.parametrize(
    ("is_causal", "mask"),
    [
        (False, None),
        (True, None),
        (False, some_seen(ROWS, 1, TOKENS, TOKENS)),
        (False, some_seen(1, HEADS, TOKENS, TOKENS)),
        (False, torch.zeros(TOKENS, TOKENS).masked_fill(~some_seen(TOKENS, TOKENS), -torch.inf)),
    ],
    ids=["all", "causal", "mask of rows", "mask of heads", "additive"],
)
def test_a_sum_of_values_is_that_of_float64(
    is_causal: bool, mask: Tensor | None, most_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_scores, "MOST_SCORES", most_scores)
    call = call_of(is_causal=is_causal, mask=mask)
    assert fused_scores.value_sum(call) == pytest.approx(in_float64(call), rel=1e-5)
