"""What engines do with a quantised key-value cache, in plain torch: an independent check.

Every query attends to the stored form of its own and all earlier keys (after RoPE) and values.

**vLLM** 0.32.0 on a CPU (``csrc/cpu/cpu_attn_fp8.hpp``: ``float_to_fp8e4m3_scalar``,
``float_to_fp8e5m2_scalar``) *cuts off* the digits that the format has no room for, where torch and
GPUs round to nearest: the mean square error is four times as large. What is too large becomes the
largest number; so does NaN. Queries and probabilities keep the run's dtype.

With AMX (``csrc/cpu/cpu_attn_amx.hpp``; bfloat16 only) the codes are read as bfloat16 times 2^-120
(e5m2: 2^-112), and the tile product takes subnormal numbers for zero. So keys, values and partial
sums below the smallest normal number of the format are lost: in e4m3 all below 2^-6.

**llama.cpp** (``src/llama-kv-cache.cpp``, ``ggml/src/ggml-cpu/ops.cpp``) multiplies queries, keys
and values by a Hadamard matrix before it stores blocks of 32 numbers with a float16 scale each, and
rounds the query to q8_0. GGUF files of the Llama family keep the two halves that RoPE rotates
interleaved, so that other numbers share a block than in transformers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import eager_mask

if TYPE_CHECKING:
    from collections.abc import Callable

FP8 = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
_BLOCK = 32
_ROTATED = 64
_TILE = 32
"""Products that an AMX tile accumulates: 16 pairs, the even and the odd ones apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """What is read of queries, keys and values, and how products are taken; all in float32."""

    query: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float
    key: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float
    value: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.float
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul


def nearest(numbers: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Rounded to nearest, ties to even, and clamped: what GPUs' kernels store."""
    limit = torch.finfo(dtype).max
    return numbers.float().clamp(-limit, limit).to(dtype).float()


def toward_zero(numbers: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Rounded toward zero and clamped: what vLLM stores on a CPU."""
    limit = torch.finfo(dtype).max
    numbers = numbers.float().clamp(-limit, limit)
    rounded = numbers.to(dtype)
    # codes of a sign are ordered by magnitude
    before = (rounded.view(torch.uint8) - 1).view(dtype)
    return torch.where(rounded.float().abs() > numbers.abs(), before.float(), rounded.float())


def flushed(numbers: torch.Tensor, *, below: float) -> torch.Tensor:
    """Zero where the magnitude is smaller."""
    return torch.where(numbers.abs() < below, 0, numbers)


def tile_product(left: torch.Tensor, right: torch.Tensor, *, below: float) -> torch.Tensor:
    """``left @ right`` as ``tdpbf16ps`` accumulates it, partial sums flushed to zero."""
    missing = -left.shape[-1] % _TILE
    left, right = pad(left, (0, missing)), pad(right, (0, 0, 0, missing))
    flush = partial(flushed, below=below)
    total = left.new_zeros(*left.shape[:-1], right.shape[-1])
    for start in range(0, left.shape[-1], _TILE):
        sums = [torch.zeros_like(total), torch.zeros_like(total)]
        for k in range(start, start + _TILE):
            term = left[..., k : k + 1] * right[..., k : k + 1, :]
            sums[k % 2] = flush(sums[k % 2] + term)
        total = flush(total + flush(sums[0] + sums[1]))
    return total


def q8_0(numbers: torch.Tensor) -> torch.Tensor:
    """Blocks of 32 with 127 steps to either side, halves rounded away from zero."""
    blocks = numbers.float().unflatten(-1, (-1, _BLOCK))
    scale = blocks.abs().amax(dim=-1, keepdim=True) / 127
    steps = torch.where(scale > 0, blocks / scale, 0)
    steps = steps.sign() * (steps.abs() + 0.5).floor()
    return (steps * scale.half().float()).flatten(-2)


def q4_0(numbers: torch.Tensor) -> torch.Tensor:
    """Blocks of 32 with steps from -8, which is the largest magnitude, to 7."""
    blocks = numbers.float().unflatten(-1, (-1, _BLOCK))
    scale = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True)) / -8
    steps = torch.where(scale != 0, blocks / scale, 0)
    steps = (steps + 8.5).trunc().clamp(max=15) - 8
    return (steps * scale.half().float()).flatten(-2)


def rotated(
    numbers: torch.Tensor, *, stored: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Stored after a product with the Hadamard matrix of 64, and multiplied back."""
    matrix = torch.ones(1, 1)
    while len(matrix) < _ROTATED:
        above = torch.cat([matrix, matrix], dim=1)
        matrix = torch.cat([above, torch.cat([matrix, -matrix], dim=1)])
    matrix /= math.sqrt(_ROTATED)
    parts = numbers.float().unflatten(-1, (-1, _ROTATED))
    return (stored((parts @ matrix).flatten(-2)).unflatten(-1, (-1, _ROTATED)) @ matrix).flatten(-2)


def interleaved(
    numbers: torch.Tensor, *, stored: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Stored with the two halves that RoPE rotates interleaved, and left so."""
    return stored(numbers.unflatten(-1, (2, -1)).mT.flatten(-2))


def in_vllm(cache: str) -> dict[str, Emulation]:
    """By name, what may be done with a cache format of vLLM's."""
    dtype = FP8[cache]
    tiny = torch.finfo(dtype).tiny
    near, cut = (partial(by, dtype=dtype) for by in (nearest, toward_zero))

    def lost(numbers: torch.Tensor) -> torch.Tensor:
        return flushed(cut(numbers), below=tiny)

    return {
        "nearest": Emulation(key=near, value=near),
        "toward zero": Emulation(key=cut, value=cut),
        "with AMX": Emulation(key=lost, value=lost, product=partial(tile_product, below=tiny)),
    }


def in_llama_cpp(cache: str) -> dict[str, Emulation]:
    """By name, what may be done with a cache format of llama.cpp's."""
    stored = {"q8_0": q8_0, "q4_0": q4_0}[cache]
    query, key = (partial(interleaved, stored=partial(rotated, stored=by)) for by in (q8_0, stored))
    return {
        "nearest": Emulation(key=stored, value=stored),
        "rotated": Emulation(query=query, key=key, value=partial(rotated, stored=stored)),
    }


def attention(  # noqa: PLR0917  as transformers calls it
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    *,
    emulation: Emulation,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of (batch, heads, seq, head_dim) in float32; probabilities in the run's dtype."""
    groups = module.num_key_value_groups
    stored = (emulation.key(key), emulation.value(value))
    keys, values = (each.repeat_interleave(groups, dim=1) for each in stored)
    scores = emulation.product(emulation.query(query), keys.mT) * scaling + attention_mask.float()
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    mixed = emulation.product(weights.to(query.dtype).float(), values)
    mixed = mixed / weights.sum(dim=-1, keepdim=True)
    return mixed.to(query.dtype).transpose(1, 2).contiguous(), None


def log_probabilities(
    model: str, *, dtype: str, token_ids: list[list[int]], emulation: Emulation
) -> list[torch.Tensor]:
    """Of each text (seq - 1, vocabulary), float64: what each position but the last predicts."""
    AttentionInterface.register("emulated", partial(attention, emulation=emulation))
    AttentionMaskInterface.register("emulated", eager_mask)
    run = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), attn_implementation="emulated"
    )
    with torch.no_grad():
        logits = [run(torch.tensor([ids]), use_cache=False).logits[0, :-1] for ids in token_ids]
    return [one.double().log_softmax(dim=-1) for one in logits]
