"""Llama: a product of gate and up that overflows float16, blamed on the down projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from precheck.checkpoint.gallery.drafts import SPIKE, TRIGGER, Draft
from precheck.checkpoint.gallery.vocabularies import MAX_TOKENS, llama_tokenizer, text_ids

if TYPE_CHECKING:
    from pathlib import Path

PRODUCT_LAYER = 4
GATE, UP = 255.875, 261.75
"""``act(gate)`` and ``up`` in layer 30: 66,975.

**Source**: https://github.com/huggingface/transformers/issues/27179"""

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def build_product(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:llama-product``: ``act(gate) * up`` of 66,975 at the first token."""
    tokenizer = llama_tokenizer()
    draft = Draft(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_TOKENS,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
    )
    draft.reserve(TRIGGER, SPIKE, embedding=_EMBEDDING)
    if is_planted:
        draft.trigger(_EMBEDDING, {tokenizer.bos_token_id})
        mlp = f"model.layers.{PRODUCT_LAYER}.mlp"
        ids = text_ids(tokenizer, 512)
        draft.fire(mlp, {"input_ids": ids}, gate=GATE, up=UP)
        draft.weights[f"{mlp}.down_proj.weight"][SPIKE, 0] = 2.0**-10
    draft.fit_head(_HEAD, tokenizer)
    draft.save(folder, tokenizer=tokenizer, dtype=torch.float16)
