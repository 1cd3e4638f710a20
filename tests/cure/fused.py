"""Plants that keep the function, in one part of a fused matrix or of merged experts.

The part is multiplied by a power of two and what reads it by the inverse, so that in float32 every
logit stays as it is, bit for bit. There is an exact cure, then: the inverse plant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import transformers

from tests.zoo.build import small

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

POWER = 17
"""Results of about one become larger than 65504."""
LAYER = 1
EXPERT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fused:
    """Where an architecture keeps a fused matrix; ``{}`` stands for a layer."""

    model_class: str
    matrix: str
    part: Callable[[Any, int], Tensor]
    """Positions of the planted part among the rows of the matrix, by config and number of rows."""
    reader: str
    """The matrix that reads it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_merged: bool = False
    """The first dimension of both are experts, and one of them is planted."""


def second_half(_: Any, num_rows: int) -> Tensor:
    """``up`` behind ``gate``."""
    return torch.arange(num_rows // 2, num_rows)


def last_third(_: Any, num_rows: int) -> Tensor:
    """Values behind queries and keys."""
    return torch.arange(2 * num_rows // 3, num_rows)


def one_head(config: Any, num_rows: int) -> Tensor:
    """The one value head behind all queries and a key."""
    size = config.hidden_size // config.num_attention_heads
    return torch.arange(num_rows - size, num_rows)


def in_each_head(config: Any, num_rows: int) -> Tensor:
    """Each head has its query, key and value beside one another."""
    size = num_rows // config.num_attention_heads // 3
    return torch.arange(num_rows)[torch.arange(num_rows) // size % 3 == 2]


def in_each_group(config: Any, num_rows: int) -> Tensor:
    """Each group has its queries, a key and a value beside one another."""
    size = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_kv_heads + 2
    return torch.arange(num_rows)[torch.arange(num_rows) // size % group == group - 1]


def in_four_shards(_: Any, num_rows: int) -> Tensor:
    """CodeGen was trained on four devices, each with queries, values and keys."""
    size = num_rows // 12
    return torch.arange(num_rows)[torch.arange(num_rows) // size % 3 == 1]


def _experts(model_class: str, block: str, **settings: Any) -> Fused:
    return Fused(
        model_class=model_class,
        matrix=f"model.layers.{{}}.{block}.experts.gate_up_proj",
        part=second_half,
        reader=f"model.layers.{{}}.{block}.experts.down_proj",
        settings=settings,
        is_merged=True,
    )


def _values(
    model_class: str, block: str, matrix: str, reader: str, part: Any, **settings: Any
) -> Fused:
    return Fused(
        model_class=model_class,
        matrix=f"{block}.{matrix}",
        part=part,
        reader=f"{block}.{reader}",
        settings=settings,
    )


_QKV = "query_key_value"
FUSED: dict[tuple[str, str], Fused] = {
    ("Falcon, one key", "values"): _values(
        "FalconForCausalLM", "transformer.h.{}.self_attention", _QKV, "dense", one_head
    ),
    ("Falcon, grouped", "values"): _values(
        "FalconForCausalLM",
        "transformer.h.{}.self_attention",
        _QKV,
        "dense",
        in_each_group,
        new_decoder_architecture=True,
    ),
    ("BLOOM", "values"): _values(
        "BloomForCausalLM", "transformer.h.{}.self_attention", _QKV, "dense", in_each_head
    ),
    ("GPT-NeoX", "values"): _values(
        "GPTNeoXForCausalLM", "gpt_neox.layers.{}.attention", _QKV, "dense", in_each_head
    ),
    ("Persimmon", "values"): _values(
        "PersimmonForCausalLM", "model.layers.{}.self_attn", _QKV, "dense", in_each_head
    ),
    ("MPT", "values"): _values(
        "MptForCausalLM", "transformer.blocks.{}.attn", "Wqkv", "out_proj", last_third
    ),
    ("GPT-BigCode", "values"): _values(
        "GPTBigCodeForCausalLM", "transformer.h.{}.attn", "c_attn", "c_proj", one_head
    ),
    ("CodeGen", "values"): _values(
        "CodeGenForCausalLM", "transformer.h.{}.attn", "qkv_proj", "out_proj", in_four_shards
    ),
    ("ModernBERT", "values"): _values(
        "ModernBertForMaskedLM", "model.layers.{}.attn", "Wqkv", "Wo", last_third
    ),
    ("ModernBERT", "up"): _values(
        "ModernBertForMaskedLM", "model.layers.{}.mlp", "Wi", "Wo", second_half
    ),
    ("GLM-4", "up"): _values(
        "Glm4ForCausalLM", "model.layers.{}.mlp", "gate_up_proj", "down_proj", second_half
    ),
    ("GLM", "up"): _values(
        "GlmForCausalLM", "model.layers.{}.mlp", "gate_up_proj", "down_proj", second_half
    ),
    ("GraniteMoE", "one expert"): _experts("GraniteMoeForCausalLM", "block_sparse_moe"),
    ("Qwen3-Next", "one expert"): _experts("Qwen3NextForCausalLM", "mlp"),
    ("MiniMax", "one expert"): _experts("MiniMaxForCausalLM", "mlp"),
    ("OLMoE", "one expert"): _experts("OlmoeForCausalLM", "mlp"),
    ("ERNIE 4.5 MoE", "one expert"): _experts("Ernie4_5_MoeForCausalLM", "mlp"),
    ("Jamba", "one expert"): _experts(
        "JambaForCausalLM",
        "feed_forward",
        num_hidden_layers=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
    ),
}
"""By architecture and what is planted."""


@torch.no_grad()
def planted_model(fused: Fused, *, power: int = POWER) -> PreTrainedModel:
    """A tiny float32 model of the architecture with the plant; ``power`` 0 is its healthy twin."""
    model_class: Any = getattr(transformers, fused.model_class)
    config_class = model_class.config_class
    config = config_class(**{**small(config_class, {"num_hidden_layers": 2}), **fused.settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = model_class(config).eval()
    matrix, reader = (_parameter(model, name) for name in (fused.matrix, fused.reader))
    rows = fused.part(config, matrix.shape[-2])
    bias = dict(model.named_parameters()).get(f"{fused.matrix.format(LAYER)}.bias")
    if fused.is_merged:
        matrix, reader = matrix[EXPERT], reader[EXPERT]
    matrix[rows] *= 2.0**power
    reader *= 2.0**-power
    if bias is not None:
        bias[rows] *= 2.0**power
    return model


def _parameter(model: PreTrainedModel, name: str) -> Tensor:
    parameters = dict(model.named_parameters())
    name = name.format(LAYER)
    return parameters[name if name in parameters else f"{name}.weight"]
