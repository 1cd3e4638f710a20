"""The warning of a key-value cache in fp8 (PC601), and what such a cache really does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from precheck.checkpoint.gallery.vocabularies import packaged_text
from precheck.judge import judge
from precheck.judge.gate import FailOn, gate
from precheck.measure.lockstep.attribution import Attribution
from precheck.pipeline import scan
from precheck.records.finding import USABLE, Confidence, Severity
from precheck.records.sizes import E4M3_MAX
from tests.tiny_models import (
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_POSITIONS,
    NUM_HEADS,
    NUM_KV_HEADS,
    VOCAB_SIZE,
    save_checkpoint,
    tiny_config,
    tiny_of,
    tiny_tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from precheck.records.finding import Finding
    from precheck.records.report import Report

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": INTERMEDIATE_SIZE,
    "num_hidden_layers": 3,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "max_position_embeddings": MAX_POSITIONS,
    "bos_token_id": VOCAB_SIZE - 2,
    "eos_token_id": VOCAB_SIZE - 1,
}
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
PLANTED_LAYER = 1
QWEN2_NORM, MEDIAN_NORM = 605.0, 22.0
"""Of ``k_proj.bias`` in Qwen2.5-7B: in the first layer, and the median of all.

**Source**: https://github.com/ggml-org/llama.cpp/issues/21385
"""
CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen2": transformers.Qwen2Config(**COMMON),
    "qwen2_moe": transformers.Qwen2MoeConfig(
        **COMMON,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=INTERMEDIATE_SIZE,
        shared_expert_intermediate_size=INTERMEDIATE_SIZE,
    ),
    "biased llama": transformers.LlamaConfig(**COMMON, attention_bias=True),
    "starcoder2": transformers.Starcoder2Config(**COMMON),
    "stablelm": transformers.StableLmConfig(**COMMON, use_qkv_bias=True),
    "phi": transformers.PhiConfig(**COMMON),
    "glm": transformers.GlmConfig(
        **COMMON, head_dim=HEAD_DIM, attention_bias=True, pad_token_id=VOCAB_SIZE - 3
    ),
    "granite": transformers.GraniteConfig(**COMMON, attention_bias=True, attention_multiplier=0.25),
    "cohere": transformers.CohereConfig(
        **COMMON, attention_bias=True, pad_token_id=VOCAB_SIZE - 3, logit_scale=1.0
    ),
    "gpt_neox": tiny_config("gpt_neox"),
}
NORMALISED: dict[str, PreTrainedConfig] = {
    "qwen3": transformers.Qwen3Config(**COMMON, head_dim=HEAD_DIM, attention_bias=True),
    "gemma3": tiny_config("gemma3"),
    "olmo2": transformers.Olmo2Config(**COMMON, attention_bias=True, pad_token_id=VOCAB_SIZE - 3),
}
UNBIASED = {name: tiny_config(name) for name in ("llama", "mixtral", "phi3", "gemma2")}


@torch.no_grad()
def planted(config: PreTrainedConfig, norm: float) -> tuple[PreTrainedModel, str]:
    """A tiny model with a key bias in the slowest pairs of one layer, and the bias's name."""
    model = tiny_of(config)
    name, bias = next(
        (name, parameter)
        for name, parameter in model.named_parameters()
        if f"layers.{PLANTED_LAYER}." in name
        and name.endswith(("k_proj.bias", "query_key_value.bias"))
    )
    of_heads = bias.view(-1, HEAD_DIM)
    if "query_key_value" in name:  # of every head its query, key and value
        of_heads = of_heads[1::3]
    slow = [HEAD_DIM // 2 - 2, HEAD_DIM // 2 - 1, HEAD_DIM - 2, HEAD_DIM - 1]
    if "query_key_value" in name:  # a quarter of a head is rotated
        slow = [1, 3]
    drawn = torch.randn(len(of_heads), len(slow), generator=torch.Generator().manual_seed(0))
    of_heads.zero_()
    of_heads[:, slow] = drawn / drawn.norm() * norm
    return model, name


def warning_in(report: Report) -> Finding | None:
    found = [finding for finding in report.findings if finding.code == "PC601"]
    assert len(found) <= 1
    return found[0] if found else None


def scanned(model: PreTrainedModel, folder: Path, **options: Any) -> Report:
    save_checkpoint(model, folder, tokenizer=True)
    return scan(folder, **{"dtypes": ["float16"], "quick": True, **options})


class Fp8Cache(transformers.DynamicCache):
    """Stores keys and values in e4m3 at scale 1, saturating as engines' kernels do."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return _stored(keys), _stored(values)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(tensor.dtype)


@torch.no_grad()
def measured_kl(folder: Path) -> float:
    """Mean KL of the model with an fp8 cache from itself, in plain transformers, nats."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tiny_tokenizer()(packaged_text()[:400], return_tensors="pt")["input_ids"]
    exact = model(ids, use_cache=False).logits.double().log_softmax(dim=-1)
    rounded = model(ids, past_key_values=Fp8Cache()).logits.double().log_softmax(dim=-1)
    return float((exact.exp() * (exact - rounded)).sum(dim=-1).mean())


def test_the_maximum_is_torchs() -> None:
    assert torch.finfo(torch.float8_e4m3fn).max == E4M3_MAX


@pytest.mark.parametrize("name", CONFIGS)
def test_warns_of_a_key_bias_and_names_it(name: str, tmp_path: Path) -> None:
    model, bias = planted(CONFIGS[name], QWEN2_NORM)
    report = scanned(model, tmp_path / "planted")
    warning = warning_in(report)
    assert warning is not None
    assert (warning.severity, warning.confidence) == (Severity.WARNING, Confidence.PREDICTED)
    assert warning.module == bias
    assert warning.layer == PLANTED_LAYER
    assert f"{bias} has a norm of 605 " in warning.message
    assert f"--kv-cache-dtype-skip-layers {PLANTED_LAYER})" in warning.advice
    assert warning.runs == ()
    assert all(run.verdict in USABLE for run in report.runs)
    row = next(row for row in report.key_values if row.layer == PLANTED_LAYER)
    assert row.key_bias is not None
    assert row.key_bias.norm == pytest.approx(QWEN2_NORM, rel=1e-4)


def test_the_bias_is_the_same_wherever_weights_are(tmp_path: Path) -> None:
    model, _ = planted(CONFIGS["gpt_neox"], QWEN2_NORM)
    streamed = scanned(model, tmp_path).key_values
    resident = scan(tmp_path, dtypes=["float16"], quick=True, resident=True).key_values
    live = scan(model, tokenizer=tiny_tokenizer(), dtypes=["float16"], quick=True).key_values
    assert streamed == resident == live


def test_no_verdict_depends_on_it(tmp_path: Path) -> None:
    model, _ = planted(CONFIGS["qwen2"], QWEN2_NORM)
    report = scanned(model, tmp_path)
    without = judge(replace(report.measurements, key_values=()), version=report.precheck_version)
    assert warning_in(report) is not None
    assert without.runs == report.runs
    assert without.recommendation == report.recommendation
    for fail_on in FailOn:
        assert gate(report, fail_on=fail_on) == gate(without, fail_on=fail_on)


@pytest.mark.parametrize("name", CONFIGS)
def test_is_silent_on_a_usual_bias_which_costs_little(name: str, tmp_path: Path) -> None:
    healthy, _ = planted(CONFIGS[name], MEDIAN_NORM)
    assert warning_in(scanned(healthy, tmp_path / "healthy")) is None
    broken, _ = planted(CONFIGS[name], QWEN2_NORM)
    save_checkpoint(broken, tmp_path / "planted", tokenizer=True)
    assert measured_kl(tmp_path / "planted") > 10 * measured_kl(tmp_path / "healthy")


@pytest.mark.parametrize("name", NORMALISED)
def test_is_silent_where_keys_are_normalised(name: str, tmp_path: Path) -> None:
    config = NORMALISED[name]
    model = planted(config, QWEN2_NORM)[0] if name != "gemma3" else tiny_of(config)
    report = scanned(model, tmp_path / "planted")
    assert warning_in(report) is None
    assert all(row.is_key_normalised for row in report.key_values)
    save_checkpoint(tiny_of(config), tmp_path / "healthy", tokenizer=True)
    assert measured_kl(tmp_path / "planted") < 3 * measured_kl(tmp_path / "healthy")


@pytest.mark.parametrize("name", UNBIASED)
def test_is_silent_without_biases(name: str, tmp_path: Path) -> None:
    report = scanned(tiny_of(UNBIASED[name]), tmp_path)
    assert report.key_values
    assert all(row.key_bias is None for row in report.key_values)
    assert warning_in(report) is None


@pytest.mark.parametrize(("size", "warns"), [(1272.0, True), (400.0, False)])
def test_warns_of_values_that_are_clipped(size: float, *, warns: bool, tmp_path: Path) -> None:
    model = tiny_of(CONFIGS["qwen2"])
    with torch.no_grad():
        attention = model.get_submodule(f"model.layers.{PLANTED_LAYER}.self_attn")
        attention.v_proj.bias[3] = size
        attention.o_proj.weight[:, [3, HEAD_DIM + 3]] = 0.0
    warning = warning_in(scanned(model, tmp_path))
    if not warns:
        assert warning is None
        return
    assert warning is not None
    assert warning.module == f"model.layers.{PLANTED_LAYER}.self_attn"
    assert "a value of 1,27" in warning.message
    assert "k_proj.bias" not in warning.message
    assert "calibrated k_scale and v_scale" in warning.advice


def test_says_nothing_of_a_model_without_a_cache(tmp_path: Path) -> None:
    model = tiny_of(tiny_config("bert"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("attention.self.key.bias"):
                parameter.mul_(1e4)
    report = scanned(model, tmp_path)
    assert warning_in(report) is None


def test_no_operation_is_run_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = planted(CONFIGS["qwen2"], QWEN2_NORM)
    operations: list[str] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, _types: object, args: Any = (), kwargs: Any = None
        ) -> Any:
            operations.append(str(func))
            return func(*args, **kwargs or {})

    add = Attribution.add_key_values

    def counted(self: Attribution, located: Any) -> None:
        with Counting():  # type: ignore[no-untyped-call]
            add(self, located)

    monkeypatch.setattr(Attribution, "add_key_values", counted)
    report = scanned(model, tmp_path)
    assert operations == []
    monkeypatch.setattr(Attribution, "add_key_values", lambda _self, _located: None)
    without = scan(tmp_path, dtypes=["float16"], quick=True)
    assert report.key_values
    assert not without.key_values
    assert without.coverage == report.coverage
