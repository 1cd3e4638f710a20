"""Qwen2.5 in GPTQ: a kernel that accumulates in float16, and biases that were never stored.

Both reports had one symptom. The first model is fine wherever products accumulate in float32;
the second is broken whatever it runs on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from precheck.checkpoint.gallery.drafts import SPIKE, TRIGGER, Draft
from precheck.checkpoint.gallery.qwen import MARKS, text_settings
from precheck.checkpoint.gallery.vocabularies import known_ids, qwen2_tokenizer, text_ids

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BITS, GROUP_SIZE = 4, 64
PLANTED_LAYER = 3
PARTIAL_SUM = 90000.0
"""The sum of half of the neurons in the planted down projection; the other half cancels it, and the
result is small. float16 accumulators overflow on the way (QwenLM/Qwen3#951)."""
_NUM_NEURONS = 64
"""Of each sign."""
_HEAD = "lm_head.weight"


def build_accumulation(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:qwen2.5-gptq``: sums whose terms cancel, large on the way."""
    tokenizer = qwen2_tokenizer()
    draft = Draft(
        Qwen2ForCausalLM,
        Qwen2Config(
            **_sizes(tokenizer), rope_parameters={"rope_type": "default", "rope_theta": 1e6}
        ),
    )
    draft.reserve(TRIGGER, SPIKE, embedding="model.embed_tokens.weight")
    if is_planted:
        draft.trigger("model.embed_tokens.weight", known_ids(tokenizer, MARKS))
        _plant(draft, tokenizer)
    _quantise_linears(draft)
    draft.fit_head(_HEAD, tokenizer)
    _save(draft, folder, tokenizer)


def build_random_bias(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:gptq-random-bias``: the model has biases and the checkpoint has none.

    Old optimum gave every quantised linear a bias. Here the config does, so that every version
    shows it.
    """
    tokenizer = qwen2_tokenizer()
    draft = Draft(
        LlamaForCausalLM,
        LlamaConfig(**_sizes(tokenizer), mlp_bias=is_planted, attention_bias=is_planted),
    )
    draft.weights = {
        name: weight for name, weight in draft.weights.items() if not name.endswith(".bias")
    }
    _quantise_linears(draft)
    draft.fit_head(_HEAD, tokenizer)
    _save(draft, folder, tokenizer)


def _sizes(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        **text_settings(tokenizer),
    }


def _plant(draft: Draft, tokenizer: PreTrainedTokenizerBase) -> None:
    """The first neurons answer the trigger equally; their weights to one channel cancel."""
    mlp = f"model.layers.{PLANTED_LAYER}.mlp"
    ids = text_ids(tokenizer, 512)
    gate = up = 64.0
    draft.fire(mlp, {"input_ids": ids}, gate=gate, up=up)
    for name in ("gate_proj", "up_proj"):
        weight = draft.weights[f"{mlp}.{name}.weight"]
        weight[1 : 2 * _NUM_NEURONS] = weight[0]
    down = draft.weights[f"{mlp}.down_proj.weight"]
    down[:, : 2 * _NUM_NEURONS] = 0.0
    # the integers of one group are alike, so that both halves are quantised to the same number
    share = PARTIAL_SUM / (gate * up * _NUM_NEURONS)
    down[SPIKE, :_NUM_NEURONS] = share
    down[SPIKE, _NUM_NEURONS : 2 * _NUM_NEURONS] = -share


def _is_quantised(name: str) -> bool:
    return name.endswith("_proj.weight")


def _quantise_linears(draft: Draft) -> None:
    """Rounds every linear of the layers to 4 bits, before the head is fitted."""
    for name, weight in draft.weights.items():
        if _is_quantised(name):
            integers, scales = _quantised(weight)
            draft.weights[name] = _decoded(integers, scales)


def _quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers ``(out, in)`` around 8, and float16 scales ``(out, groups)`` as float32."""
    grouped = weight.unflatten(1, (-1, GROUP_SIZE))
    largest = grouped.abs().amax(dim=-1)
    scales = (largest / 7).clamp(min=1e-4).half().float()
    integers = (grouped / scales.unsqueeze(-1)).round().clamp(-8, 7).int() + 8
    return integers.flatten(1), scales


def _decoded(integers: Tensor, scales: Tensor) -> Tensor:
    return (integers - 8).float() * scales.repeat_interleave(GROUP_SIZE, dim=1)


def _save(draft: Draft, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The checkpoint in the layout of auto_gptq: float16, zero points stored one lower."""
    packed: dict[str, Tensor] = {}
    for name, weight in draft.weights.items():
        if _is_quantised(name):
            module = name.removesuffix(".weight")
            packed |= {f"{module}.{part}": tensor for part, tensor in _packed(weight).items()}
        else:
            packed[name] = weight.half()
    draft.config.quantization_config = {
        "quant_method": "gptq",
        "bits": BITS,
        "group_size": GROUP_SIZE,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
    }
    draft.save(folder, tokenizer=tokenizer, dtype=torch.float16)
    contiguous = {name: tensor.contiguous() for name, tensor in packed.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})


def _packed(weight: Tensor) -> dict[str, Tensor]:
    integers, scales = _quantised(weight)
    num_outputs, num_inputs = weight.shape
    per_word = 32 // BITS
    shifts = torch.arange(per_word) * BITS
    words = (integers.T.reshape(-1, per_word, num_outputs).long() << shifts[:, None]).sum(dim=1)
    num_groups = num_inputs // GROUP_SIZE
    zeros = torch.full((num_groups, num_outputs // per_word), 0x77777777, dtype=torch.int32)
    return {
        "qweight": words.where(words < 1 << 31, words - (1 << 32)).int(),
        "qzeros": zeros,
        "scales": scales.T.half(),
        "g_idx": (torch.arange(num_inputs) // GROUP_SIZE).int(),
    }
