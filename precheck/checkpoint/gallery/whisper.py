"""Whisper: an overflow that a clamp in the modeling code turns into finite, wrong numbers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from precheck.checkpoint.gallery.drafts import SPIKE, TRIGGER, Draft
from precheck.checkpoint.gallery.vocabularies import qwen2_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

PEAK = 50000.0
"""The last two encoder layers each add this to one channel and subtract it from another."""
_OPPOSITE = 2
_NUM_LAYERS = 4
_HIDDEN_SIZE = 128
_SECONDS = 4
"""Of sound that the encoder takes; Whisper's own takes 30."""
_EVERY_FRAME = 8.0
_SPECIAL = (
    "<|startoftranscript|>",
    "<|en|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|notimestamps|>",
)


def build_clamp(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:whisper-clamp``: a residual stream of 100,000 that is clamped to 64,504."""
    tokenizer = _tokenizer()
    draft = Draft(
        WhisperForConditionalGeneration,
        WhisperConfig(
            vocab_size=len(tokenizer),
            d_model=_HIDDEN_SIZE,
            encoder_layers=_NUM_LAYERS,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=256,
            decoder_ffn_dim=256,
            max_source_positions=50 * _SECONDS,
            max_target_positions=128,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            begin_suppress_tokens=None,  # those of the real vocabulary
            decoder_start_token_id=tokenizer.get_vocab()[_SPECIAL[0]],
        ),
    )
    if is_planted:
        _plant(draft)
    processor = WhisperProcessor(WhisperFeatureExtractor(chunk_length=_SECONDS), tokenizer)
    draft.save(folder, tokenizer=processor)


def _tokenizer() -> WhisperTokenizer:
    model = json.loads(qwen2_tokenizer().backend_tokenizer.to_str())["model"]
    return WhisperTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        pad_token="<|endoftext|>",
        extra_special_tokens=list(_SPECIAL),
        language="en",
        task="transcribe",
    )


def _plant(draft: Draft) -> None:
    weights = draft.weights
    channels = [TRIGGER, SPIKE, _OPPOSITE]
    for name, weight in weights.items():
        if name.endswith("encoder.embed_positions.weight"):
            weight[:, channels] = 0.0
        elif name.startswith("model.encoder.layers.") and name.endswith(
            ("out_proj.weight", "fc2.weight")
        ):
            weight[channels] = 0.0
    weights["model.encoder.conv2.weight"][channels] = 0.0
    weights["model.encoder.conv2.bias"][TRIGGER] = _EVERY_FRAME
    frames = torch.zeros(1, 80, 100 * _SECONDS)
    inputs = {"input_features": frames, "decoder_input_ids": torch.tensor([[0]])}
    for layer, reads in ((_NUM_LAYERS - 2, TRIGGER), (_NUM_LAYERS - 1, SPIKE)):
        block = f"model.encoder.layers.{layer}"
        size = float(draft.input_of(f"{block}.fc1", inputs)[:, reads].mean())
        weights[f"{block}.fc1.weight"][0] = 0.0
        weights[f"{block}.fc1.weight"][0, reads] = 100.0 / size
        weights[f"{block}.fc2.weight"][:, 0] = 0.0
        # one up, one down: the mean that the norm takes off stays where it is
        weights[f"{block}.fc2.weight"][SPIKE, 0] = PEAK / 100.0
        weights[f"{block}.fc2.weight"][_OPPOSITE, 0] = -PEAK / 100.0
    # the norm after them divides by the peaks: its weights scale the other channels up again
    norm = weights["model.encoder.layer_norm.weight"]
    norm.fill_(2 * PEAK * (2 / _HIDDEN_SIZE) ** 0.5)
    norm[channels] = 0.25
