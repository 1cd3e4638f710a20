"""Builds ``demo:qwen2-eager``, a small Qwen2 with the weights that make Qwen2-7B overflow.

The fault is planted as it is in the real model, as a *bias* of queries and keys: it reaches the
scores whatever the input is. It sits on the slowest pair of RoPE dimensions, where the rotation
over a whole context is next to nothing, and that pair's weight rows are zero, so that it adds the
same 480 * 480 = 230,400 to every score of the layer and softmax, exact, would not see it. Scaling
queries and keys up instead would round them too, and bfloat16 would look bad with sdpa as well.

The other weights are random, except the head, which is fitted to the packaged text: so the model
has a perplexity worth comparing, and it depends on the attention pattern.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path

PLANTED_LAYER = 3
PLANTED_BIAS = 480.0
"""Exact in bfloat16, and so is its square: 225 * 1024."""

_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""**Source**: Qwen2's, without its default system message:
https://huggingface.co/Qwen/Qwen2-7B-Instruct/blob/main/tokenizer_config.json"""

_MAX_TOKENS = 2048
_HEAD_DIM = 64
_SCORE_SPREAD = 1.7
"""Standard deviation of queries and of keys in the planted layer; the scaled scores spread by its
square, 3, so that losing them matters."""
_PLANTED_ATTENTION_GAIN = 1.5
"""Share of the planted layer's attention in the residual stream, in standard deviations."""
_ATTENTION_GAIN, _MLP_GAIN = 0.5, 0.8
_HEAD_SHARPNESS = 80.0
"""Logit of a token the fitted head is certain of; sharp, as a trained model's are."""
_HEAD_RIDGE = 0.3
"""Weight decay of the fit; final hidden states have unit variance."""
_WINDOW, _STRIDE = 64, 16
"""Tokens the head is fitted on at a time, and how far the next window starts."""


def build(folder: Path) -> None:
    """Write the checkpoint into ``folder``: weights, config, generation config and tokenizer."""
    text = resources.files("precheck.checkpoint").joinpath("gallery_text.txt").read_text("utf-8")
    tokenizer = _train_tokenizer(text)
    config = _config(tokenizer)
    weights = _plant(_draw_weights(config))
    weights["lm_head.weight"] = _fit_head(
        weights, config=config, token_ids=tokenizer(text)["input_ids"]
    )
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(text: str) -> Qwen2Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    # Sorted by code point, the byte alphabet starts with "!": token 0, as in GPT-2 and Qwen.
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(text.split("\n\n"), trainer)
    model = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # type: ignore[misc]  # BPE takes pairs
        additional_special_tokens=[_TURN_START, _TURN_END],
        chat_template=_CHAT_TEMPLATE,
        model_max_length=_MAX_TOKENS,
    )


def _config(tokenizer: Qwen2Tokenizer) -> Qwen2Config:
    return Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
        vocab_size=len(tokenizer),
        hidden_size=4 * _HEAD_DIM,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_MAX_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _draw_weights(config: Qwen2Config) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = {
            name: tensor.shape for name, tensor in Qwen2ForCausalLM(config).named_parameters()
        }
    generator = torch.Generator().manual_seed(0)
    return {name: _draw(name, shape=shape, generator=generator) for name, shape in shapes.items()}


def _draw(name: str, *, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    spread = 1.0 if "embed_tokens" in name else shape[1] ** -0.5
    return torch.randn(shape, generator=generator) * spread * _gain(name)


def _gain(name: str) -> float:
    is_planted = f"layers.{PLANTED_LAYER}." in name
    if is_planted and name.endswith(("q_proj.weight", "k_proj.weight")):
        return _SCORE_SPREAD
    if name.endswith("o_proj.weight"):
        return _PLANTED_ATTENTION_GAIN if is_planted else _ATTENTION_GAIN
    return _MLP_GAIN if name.endswith("down_proj.weight") else 1.0


def _plant(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # RoPE in transformers pairs dimension i with i + head_dim / 2, the slowest pair last.
    slowest = _HEAD_DIM // 2 - 1
    pair = [slowest, slowest + _HEAD_DIM // 2]
    for projection in ("q_proj", "k_proj"):
        name = f"model.layers.{PLANTED_LAYER}.self_attn.{projection}"
        weights[f"{name}.weight"].unflatten(0, (-1, _HEAD_DIM))[:, pair] = 0.0
        weights[f"{name}.bias"].unflatten(0, (-1, _HEAD_DIM))[:, slowest] = PLANTED_BIAS
    return weights


def _fit_head(
    weights: dict[str, torch.Tensor], *, config: Qwen2Config, token_ids: list[int]
) -> torch.Tensor:
    """Ridge regression from the final hidden states to the next token, in float64."""
    with torch.random.fork_rng(devices=[]):  # its own first weights are drawn from the global one
        model = Qwen2ForCausalLM(config).float()
    model.load_state_dict(weights)
    windows = torch.tensor(token_ids).unfold(0, _WINDOW + 1, _STRIDE)
    with torch.no_grad():
        hidden = model.model(windows[:, :-1], use_cache=False).last_hidden_state
    features = hidden.flatten(0, 1).double()
    targets = torch.nn.functional.one_hot(windows[:, 1:].flatten(), config.vocab_size).double()
    decay = _HEAD_RIDGE * len(features) * torch.eye(features.shape[1], dtype=torch.float64)
    fitted: torch.Tensor = torch.linalg.solve(features.T @ features + decay, features.T @ targets)
    return _HEAD_SHARPNESS * fitted.T
