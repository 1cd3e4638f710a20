"""Qwen2 and Qwen3: raw attention scores, masks and massive activations.

Score faults are planted as in the real model, as a *bias* of queries and keys: it reaches the
scores whatever the input is. It sits on the slowest pair of RoPE dimensions, which hardly rotates
over a whole context, and that pair's weight rows are zero. So it adds the same number to every
score of the layer, which would not change an exact softmax. Scaling queries and keys up instead
would round them too, and bfloat16 would look bad with sdpa as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from precheck.checkpoint.gallery.drafts import SPIKE, TRIGGER, Draft
from precheck.checkpoint.gallery.vocabularies import (
    MAX_TOKENS,
    known_ids,
    qwen2_tokenizer,
    text_ids,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PLANTED_LAYER = 3
PLANTED_BIAS = 480.0
"""Exact in bfloat16, and so is its square: 225 * 1024."""
MASKED_BIASES = (8.0, -24.0)
"""Of queries and of keys: every scaled score is 24 lower. That is more than the 16 by which
``finfo.min`` of float16 can fall before it is -inf, and bfloat16 keeps the digits that matter."""
RESIDUAL_PEAK = 35328.0
"""**Source**: Qwen3-32B in https://arxiv.org/abs/2605.15572 (maximum of the hidden states)."""
MARKS = (".", "Ċ", "ĊĊ", "!", "?")
"""Massive activations sit on full stops and newlines (https://arxiv.org/abs/2402.17762)."""

HEAD_DIM = 64
SCORE_SPREAD = 1.7
"""Standard deviation of queries and of keys in the planted layer; the scaled scores spread by its
square, 3, so that losing them matters."""
_PLANTED_ATTENTION_GAIN = 3.0
"""The planted layer's share in the residual stream, as a multiple of the other layers'."""
_NARROW_SPREAD = 0.7
"""The same where every score has to be low."""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def build_eager(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:qwen2-eager``: scores of 230,400 in one layer."""
    biases = (PLANTED_BIAS, PLANTED_BIAS) if is_planted else (0.0, 0.0)
    _build_qwen2(folder, biases=biases, spread=SCORE_SPREAD)


def build_left_padding(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:left-padding``: scores so low that a fully masked row is -inf throughout."""
    biases = MASKED_BIASES if is_planted else (0.0, 0.0)
    _build_qwen2(folder, biases=biases, spread=_NARROW_SPREAD)


def _build_qwen2(folder: Path, *, biases: tuple[float, float], spread: float) -> None:
    tokenizer = qwen2_tokenizer()
    draft = Draft(
        Qwen2ForCausalLM,
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=4 * HEAD_DIM,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            **text_settings(tokenizer),
        ),
        gain=lambda name: planted_gain(name, spread),
    )
    shift_scores(
        draft.weights, f"model.layers.{PLANTED_LAYER}.self_attn", biases=biases, head_dim=HEAD_DIM
    )
    draft.fit_head(_HEAD, tokenizer)
    draft.save(folder, tokenizer=tokenizer)


def text_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Config entries that Qwen's models have in common."""
    return {
        "max_position_embeddings": MAX_TOKENS,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def planted_gain(name: str, spread: float) -> float:
    """The factor on the planted layer's weights that makes its attention matter."""
    if f"layers.{PLANTED_LAYER}." not in name:
        return 1.0
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        return spread
    return _PLANTED_ATTENTION_GAIN if name.endswith("o_proj.weight") else 1.0


def shift_scores(
    weights: dict[str, Tensor], attention: str, *, biases: tuple[float, float], head_dim: int
) -> None:
    """Adds the product of two biases to every raw score of a layer.

    Args:
        weights: of the model.
        attention: name of the layer's attention module.
        biases: of queries and of keys.
        head_dim: size of a head.
    """
    # RoPE in transformers pairs dimension i with i + head_dim / 2, the slowest pair last.
    slowest = head_dim // 2 - 1
    pair = [slowest, slowest + head_dim // 2]
    for projection, bias in zip(("q_proj", "k_proj"), biases, strict=True):
        name = f"{attention}.{projection}"
        weights[f"{name}.weight"].unflatten(0, (-1, head_dim))[:, pair] = 0.0
        weights[f"{name}.bias"].unflatten(0, (-1, head_dim))[:, slowest] = bias


def build_headroom(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:qwen3-headroom``: a residual stream that leaves less than a bit of float16.

    As in the real models the spike belongs to few tokens: full stops and newlines.
    """
    tokenizer = qwen2_tokenizer()
    draft = Draft(
        Qwen3ForCausalLM,
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            **text_settings(tokenizer),
        ),
    )
    draft.reserve(TRIGGER, SPIKE, embedding=_EMBEDDING)
    if is_planted:
        draft.trigger(_EMBEDDING, known_ids(tokenizer, MARKS))
        mlp = f"model.layers.{PLANTED_LAYER}.mlp"
        ids = text_ids(tokenizer, 512)
        gate = up = 64.0
        draft.fire(mlp, {"input_ids": ids}, gate=gate, up=up)
        draft.weights[f"{mlp}.down_proj.weight"][SPIKE, 0] = RESIDUAL_PEAK / (gate * up)
    draft.fit_head(_HEAD, tokenizer)
    draft.save(folder, tokenizer=tokenizer)
