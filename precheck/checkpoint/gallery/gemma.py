"""Gemma and Gemma 3: a product that a few tokens make too large, and a residual stream that grows.

Gemma's norms multiply by ``1 + w``. Gemma 3 normalises the output of a block once more before it is
added to the residual stream, with weights in the thousands, which makes the stream so large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
)

from precheck.checkpoint.gallery.drafts import SPIKE, TRIGGER, Draft
from precheck.checkpoint.gallery.vocabularies import (
    MAX_TOKENS,
    gemma_tokenizer,
    known_ids,
    text_ids,
)

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

PRODUCT_FACTORS = (280.0, 270.0)
"""``act(gate)`` and ``up``: 75,600 together."""
PRODUCT_LAYER = 3
TRIGGERS = ("attention", "▁attention", "▁self", "self", *map(str, range(10)))
"""Digits, and words of the sentence that was reported."""
GROWTH = 40000.0
"""What each layer adds to the residual stream of the first token: above the maximum of float16 from
the second layer on, 200,000 after five, about what Gemma-3-4b reaches (245,760).

**Source**: https://arxiv.org/abs/2605.15572"""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_HIDDEN_SIZE = 128


def _settings(tokenizer: PreTrainedTokenizerBase, *, num_layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _HIDDEN_SIZE,
        "intermediate_size": 256,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": MAX_TOKENS,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _embedding_gain(name: str) -> float:
    """Gemma multiplies embeddings by the square root of the hidden size."""
    return _HIDDEN_SIZE**-0.5 if "embed" in name else 1.0


def build_prompt(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:gemma-prompt``: a gated product that only some tokens make too large."""
    tokenizer = gemma_tokenizer()
    draft = Draft(
        GemmaForCausalLM,
        GemmaConfig(**_settings(tokenizer, num_layers=6)),
        gain=_embedding_gain,
        norm=0.0,
    )
    draft.reserve(TRIGGER, SPIKE, embedding=_EMBEDDING)
    if is_planted:
        draft.trigger(_EMBEDDING, known_ids(tokenizer, TRIGGERS))
        mlp = f"model.layers.{PRODUCT_LAYER}.mlp"
        ids = text_ids(tokenizer, 512)
        gate, up = PRODUCT_FACTORS
        draft.fire(mlp, {"input_ids": ids}, gate=gate, up=up)
        draft.weights[f"{mlp}.down_proj.weight"][SPIKE, 0] = 2.0**-10
    draft.fit_head(_HEAD, tokenizer)
    draft.save(folder, tokenizer=tokenizer)


def build_residual(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:gemma3-residual``: a residual stream that grows in every layer."""
    tokenizer = gemma_tokenizer()
    draft = Draft(
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **_settings(tokenizer, num_layers=6),
            query_pre_attn_scalar=32,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"] * 3,
        ),
        gain=_embedding_gain,
        norm=0.0,
    )
    draft.reserve(TRIGGER, SPIKE, embedding=_EMBEDDING)
    if is_planted:
        draft.trigger(_EMBEDDING, {tokenizer.bos_token_id})
        ids = text_ids(tokenizer, 512)
        for layer in range(5):
            mlp = f"model.layers.{layer}.mlp"
            draft.fire(mlp, {"input_ids": ids}, gate=8.0, up=8.0)
            # it outweighs what the other neurons write, so that its norm is about one
            draft.weights[f"{mlp}.down_proj.weight"][SPIKE, 0] = 4.0
            norm = draft.weights[f"model.layers.{layer}.post_feedforward_layernorm.weight"]
            norm[SPIKE] = GROWTH * _HIDDEN_SIZE**-0.5 - 1
    draft.fit_head(_HEAD, tokenizer)
    draft.save(folder, tokenizer=tokenizer)
