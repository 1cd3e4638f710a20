"""Planted losses of formats are named exactly, and healthy twins are silent in 8 bits.

The models are random, with a head that makes their answers sharp. Plants are those of real models:
a key bias on the slowest pair of rotary channels of one head (Qwen2), a value channel beyond the
range of e4m3, an outlier channel in the input of a down projection. The last two keep the function
in float32: what is multiplied is divided again by the next matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import precheck
from precheck.facts.formats import table
from precheck.records.finding import Severity, Verdict
from precheck.records.format_loss import Cause
from tests.shell import change_weights
from tests.tiny_models import (
    HIDDEN_SIZE,
    NUM_HEADS,
    NUM_KV_HEADS,
    save_checkpoint,
    tiny_config,
    tiny_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from precheck.records.format_loss import FormatCulprits, FormatPart
    from precheck.records.report import Report, Run

NUM_LAYERS = 4
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
SLOWEST = HEAD_DIM // 2 - 1
"""The first channel of the slowest pair of rotary channels."""


def llama_like(config_class: Callable[..., Any], **settings: object) -> PreTrainedConfig:
    common = tiny_config("llama", num_layers=NUM_LAYERS).to_dict()
    kept = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
    )
    config: PreTrainedConfig = config_class(**{name: common[name] for name in kept}, **settings)
    return config


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2": lambda: llama_like(transformers.Qwen2Config),
    "llama": lambda: llama_like(transformers.LlamaConfig, attention_bias=True),
    "starcoder2": lambda: llama_like(transformers.Starcoder2Config),
    "stablelm": lambda: llama_like(transformers.StableLmConfig, use_qkv_bias=True),
    "olmo": lambda: llama_like(transformers.OlmoConfig, attention_bias=True),
    "qwen2_moe": lambda: llama_like(
        transformers.Qwen2MoeConfig,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "phi": lambda: llama_like(transformers.PhiConfig),
    "glm": lambda: llama_like(transformers.GlmConfig, head_dim=HEAD_DIM, attention_bias=True),
    "mistral": lambda: llama_like(transformers.MistralConfig),
    "qwen3": lambda: llama_like(transformers.Qwen3Config, head_dim=HEAD_DIM),
    "mixtral": lambda: llama_like(transformers.MixtralConfig, num_local_experts=4),
    "phi3": lambda: tiny_config("phi3", num_layers=NUM_LAYERS),
}
WITH_KEY_BIAS = ("qwen2", "llama", "starcoder2", "stablelm", "olmo", "qwen2_moe", "phi", "glm")
GATED = ("qwen2", "llama", "stablelm", "olmo", "mistral", "qwen3", "glm")
CACHES_OF_8_BITS, WEIGHTS_OF_8_BITS = (
    tuple(row.name for row in rows if row.bits >= 8) for rows in (table().cache, table().weight)
)


@torch.no_grad()
def healthy(name: str) -> PreTrainedModel:
    """A model in which attention matters in layer 2; key biases are zero."""
    model = tiny_of(CONFIGS[name]())
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("k_proj.bias"):
            parameter.zero_()
    gains = {
        "model.layers.2.self_attn.q_proj.weight": 2.4 if name == "starcoder2" else 1.7,
        "model.layers.2.self_attn.k_proj.weight": 1.7,
        "model.layers.2.self_attn.o_proj.weight": 3.0,
        "model.layers.2.self_attn.dense.weight": 4.0,
    }
    for parameter_name, parameter in model.named_parameters():
        parameter.mul_(gains.get(parameter_name, 1.0))
    return model


@torch.no_grad()
def with_key_bias(model: PreTrainedModel, *, head: int) -> PreTrainedModel:
    bias = model.get_parameter("model.layers.2.self_attn.k_proj.bias")
    bias.view(NUM_KV_HEADS, HEAD_DIM)[head, SLOWEST] = 440.0
    return model


@torch.no_grad()
def with_value_channel(model: PreTrainedModel, *, head: int, channel: int) -> PreTrainedModel:
    attention: Any = model.get_submodule("model.layers.1.self_attn")
    if hasattr(attention, "qkv_proj"):
        values = attention.qkv_proj.weight[(NUM_HEADS + NUM_KV_HEADS) * HEAD_DIM :]
    else:
        values = attention.v_proj.weight
    values.view(NUM_KV_HEADS, HEAD_DIM, HIDDEN_SIZE)[head, channel] *= 3000
    outputs = attention.o_proj.weight.view(HIDDEN_SIZE, NUM_HEADS, HEAD_DIM)
    group = NUM_HEADS // NUM_KV_HEADS
    # three times as much as before, so that it matters
    outputs[:, head * group : (head + 1) * group, channel] /= 1000
    return model


@torch.no_grad()
def with_outlier_input(model: PreTrainedModel, *, channel: int) -> PreTrainedModel:
    mlp: Any = model.get_submodule("model.layers.3.mlp")
    is_fused = hasattr(mlp, "gate_up_proj")
    up = mlp.gate_up_proj.weight.chunk(2)[1] if is_fused else mlp.up_proj.weight
    up[channel] *= 1000
    mlp.down_proj.weight[:, channel] /= 1000
    mlp.down_proj.weight.mul_(2.5)  # so that it matters
    return model


def scanned(
    model: PreTrainedModel,
    folder: Path,
    *,
    kv_cache_dtypes: tuple[str, ...] = (),
    quantizations: tuple[str, ...] = (),
) -> Report:
    save_checkpoint(model, folder, tokenizer=True)
    if "fp8_e4m3_checkpoint" in kv_cache_dtypes:
        change_weights(folder, add_scales)
    return precheck.scan(
        folder,
        dtypes=["float16"],
        attn_implementations=["sdpa"],
        kv_cache_dtypes=kv_cache_dtypes,
        quantizations=quantizations,
        quick=True,
    )


def add_scales(tensors: dict[str, torch.Tensor]) -> None:
    """Of keys and values, which are far below 448 times as much."""
    for layer in range(NUM_LAYERS):
        for part in "kv":
            tensors[f"model.layers.{layer}.self_attn.{part}_scale"] = torch.tensor(0.23)


def run_with(report: Report, format_: str) -> Run:
    (run,) = (run for run in report.runs if run.configuration.formats == (format_,))
    return run


def culprits_of(run: Run) -> tuple[FormatCulprits, FormatPart]:
    assert run.verdict is Verdict.DEGRADED
    assert run.format_culprits is not None
    return run.format_culprits, run.format_culprits.parts[0]


@pytest.mark.parametrize("name", WITH_KEY_BIAS)
def test_a_key_bias_is_named(name: str, tmp_path: Path) -> None:
    model = with_key_bias(healthy(name), head=1)
    report = scanned(model, tmp_path, kv_cache_dtypes=("int8", "int4"))
    for run in (run_with(report, "kv:int8"), run_with(report, "kv:int4")):
        culprits, part = culprits_of(run)
        assert part.part == "model.layers.2 keys"
        assert (part.head, part.channel) == (1, SLOWEST)
        assert (part.cause, part.clipped_share) == (Cause.BIAS, 0.0)
        assert part.tensor == "model.layers.2.self_attn.k_proj.bias"
        assert part.rounding > 0.1
        assert culprits.values_alone is not None
        assert culprits.values_alone < 0.2 * culprits.kl_divergence
    culprits, _ = culprits_of(run_with(report, "kv:int8"))
    assert culprits.left_out == ("model.layers.2",)
    assert culprits.kl_divergence_left_out is not None
    assert culprits.kl_divergence_left_out < 0.02
    (finding, *_) = (one for one in report.findings if one.code == "PC602")
    assert finding.severity is Severity.ERROR
    assert (finding.layer, finding.module) == (2, "model.layers.2")
    assert "model.layers.2.self_attn.k_proj.bias" in finding.message


@pytest.mark.parametrize(
    "name", ["qwen2", "llama", "starcoder2", "olmo", "mistral", "qwen3", "mixtral", "phi3"]
)
def test_a_value_channel_beyond_e4m3_is_named(name: str, tmp_path: Path) -> None:
    model = with_value_channel(healthy(name), head=0, channel=5)
    report = scanned(model, tmp_path, kv_cache_dtypes=("fp8_e4m3", "int8", "fp8_e5m2"))
    clipped, part = culprits_of(run_with(report, "kv:fp8_e4m3"))
    assert part.part == "model.layers.1 values"
    assert (part.head, part.channel, part.cause) == (0, 5, Cause.CHANNEL)
    assert part.abs_max > 448
    assert 0.0 < part.clipped_share < 1 / HEAD_DIM
    assert clipped.left_out == ("model.layers.1",)
    _, part = culprits_of(run_with(report, "kv:int8"))
    assert (part.part, part.head, part.channel) == ("model.layers.1 values", 0, 5)
    assert part.clipped_share == 0.0, "a scale fits it, and the other channels pay"
    assert part.rounding > 0.5
    assert run_with(report, "kv:fp8_e5m2").verdict is Verdict.SAFE, "it has the range"


@pytest.mark.parametrize("name", GATED)
def test_an_outlier_in_the_input_of_a_projection_is_named(name: str, tmp_path: Path) -> None:
    model = with_outlier_input(healthy(name), channel=11)
    report = scanned(model, tmp_path, quantizations=("int8", "int8_weight"))
    culprits, part = culprits_of(run_with(report, "q:int8"))
    assert part.part == "model.layers.3.mlp.down_proj activations"
    assert (part.layer, part.head, part.channel) == (3, None, 11)
    assert part.cause is Cause.CHANNEL
    assert culprits.left_out == ("model.layers.3.mlp.down_proj",)
    assert culprits.kl_divergence_left_out is not None
    assert culprits.kl_divergence_left_out < 0.05
    assert run_with(report, "q:int8_weight").format_culprits is None


@pytest.mark.parametrize("name", CONFIGS)
def test_a_healthy_twin_is_silent_in_8_bits(name: str, tmp_path: Path) -> None:
    report = scanned(
        healthy(name),
        tmp_path,
        kv_cache_dtypes=CACHES_OF_8_BITS,
        quantizations=WEIGHTS_OF_8_BITS,
    )
    assert len(report.runs) >= 2 + len(CACHES_OF_8_BITS) + len(WEIGHTS_OF_8_BITS)
    assert [run.name for run in report.runs if run.verdict is not Verdict.SAFE] == []
    alarms = [one for one in report.findings if one.runs and one.severity is not Severity.NOTE]
    assert [one.code for one in alarms] == []
