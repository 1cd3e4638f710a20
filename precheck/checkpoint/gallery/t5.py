"""T5: a feed-forward output beyond float16, which transformers keeps in float32 for that reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import T5Config, T5ForConditionalGeneration

from precheck.checkpoint.gallery.drafts import SPIKE, TRIGGER, Draft
from precheck.checkpoint.gallery.vocabularies import t5_tokenizer, text_ids

if TYPE_CHECKING:
    from pathlib import Path

PEAKS = (100000.0, 40000.0)
"""The last feed-forward block of the encoder writes these into two channels. Clamped to float16
they are 64,504 and 40,000, which is another direction."""
_OTHER = 2
_EVERY_TOKEN = 8.0
"""Of a trigger that every token has: it need not outweigh the channels in which tokens differ."""
_NUM_LAYERS = 4
_UNANNOTATED: dict[str, Any] = {"tie_word_embeddings": False}
"""Arguments that the config takes but its annotation leaves out."""
_HIDDEN_SIZE, _HEAD_DIM = 128, 32


def build_half(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:t5-half``: fine as transformers loads it, wrong after ``.half()``."""
    tokenizer = t5_tokenizer()
    draft = Draft(
        T5ForConditionalGeneration,
        T5Config(
            vocab_size=len(tokenizer),
            d_model=_HIDDEN_SIZE,
            d_kv=_HEAD_DIM,
            d_ff=256,
            num_layers=_NUM_LAYERS,
            num_heads=4,
            feed_forward_proj="relu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **_UNANNOTATED,
        ),
        # T5 does not scale its scores; its queries are drawn small instead
        gain=lambda name: _HEAD_DIM**-0.5 if name.endswith("Attention.q.weight") else 1.0,
    )
    draft.config.decoder_start_token_id = 0
    draft.reserve(TRIGGER, SPIKE, _OTHER, within="encoder.", embedding="shared.weight")
    if is_planted:
        _plant(draft, text_ids(tokenizer, 256))
    draft.save(folder, tokenizer=tokenizer)


def _plant(draft: Draft, ids: torch.Tensor) -> None:
    draft.trigger("shared.weight", size=_EVERY_TOKEN)
    block = f"encoder.block.{_NUM_LAYERS - 1}.layer.1.DenseReluDense"
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :8]}
    size = float(draft.input_of(f"{block}.wi", inputs)[:, TRIGGER].max())
    draft.weights[f"{block}.wi.weight"][0] = 0.0
    draft.weights[f"{block}.wi.weight"][0, TRIGGER] = 1000.0 / size
    draft.weights[f"{block}.wo.weight"][:, 0] = 0.0
    for channel, peak in zip((SPIKE, _OTHER), PEAKS, strict=True):
        draft.weights[f"{block}.wo.weight"][channel, 0] = peak / 1000.0
    # the norm after it divides by the peaks: its weights scale the other channels up again
    norm = draft.weights["encoder.final_layer_norm.weight"]
    norm.fill_(float(torch.tensor(PEAKS).norm()) * _HIDDEN_SIZE**-0.5)
    norm[[TRIGGER, SPIKE, _OTHER]] = 0.25
