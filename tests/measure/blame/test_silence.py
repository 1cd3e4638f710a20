"""Healthy models: nothing above a note, in any dtype and attention implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from precheck.pipeline import scan
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from tests.measure.mixtures import undecided
from tests.measure.scans import run_of
from tests.tiny_models import (
    EOS,
    PAD,
    TINY,
    VOCAB_SIZE,
    architectures,
    attn_implementations,
    save_checkpoint,
    tiny,
)

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report

pytestmark = pytest.mark.usefixtures("far")


def grave(report: Report) -> list[str]:
    """What is said above a note."""
    return [finding.message for finding in report.findings if finding.severity is not Severity.NOTE]


def test_bloom_s_biases_are_named_in_bfloat16_and_nothing_else_is(tmp_path: Path) -> None:
    """Its distances are beyond what bfloat16 tells apart, in any checkpoint and a long text."""
    report = scan(save_checkpoint(tiny("bloom"), tmp_path, tokenizer=True))
    found = {each.code: each for each in report.findings if each.severity is not Severity.NOTE}
    assert set(found) == {"PC201", "PC721"}
    for run in report.runs:
        is_rounded = run.dtype is Dtype.BFLOAT16
        assert run.verdict is (Verdict.DEGRADED if is_rounded else Verdict.SAFE)
        assert run.overflows == ()
    assert "biases" in found["PC201"].message


@pytest.mark.parametrize("name", architectures(name for name in TINY if name != "bloom"))
def test_a_healthy_model_is_safe_in_every_configuration(name: str, tmp_path: Path) -> None:
    report = scan(save_checkpoint(tiny(name), tmp_path, tokenizer=True))
    assert grave(report) == []
    assert {(run.dtype, run.attn_implementation) for run in report.runs} == {
        (dtype, attn) for dtype in Dtype for attn in attn_implementations(name)
    }
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert all(run.overflows == () for run in report.runs)
    assert all(run.symptom is None for run in report.runs)
    assert all(layer.num_nan == layer.num_inf == 0 for run in report.runs for layer in run.layers)
    kinds = [probe.kind for probe in report.probes]
    assert len(kinds) >= 14
    assert {"text", "chat", "padded", "token_ids"} <= set(kinds)
    assert report.recommendation is not None
    assert report.recommendation.dtype is not None


def test_a_mask_written_as_minus_infinity_is_no_fault() -> None:
    # Latent attention: heads of unequal width take sdpa to the kernel that writes its own mask,
    # keys are put together in new memory, and the router hides groups behind -inf.
    config = transformers.DeepseekV3Config(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=64,
        moe_intermediate_size=16,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    )
    torch.manual_seed(0)
    report = scan(transformers.DeepseekV3ForCausalLM(config), quick=True)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert all(run.overflows == () for run in report.runs)


def _long_t5(folder: Path, attention: str, *, gain: float = 1) -> Path:
    """LongT5, whose local attention adds -1e10; ``gain`` makes the scores of one layer large."""
    config_class: Any = transformers.LongT5Config
    config = config_class(
        vocab_size=VOCAB_SIZE,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        local_radius=31,
        encoder_attention_type=attention,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    torch.manual_seed(0)
    model = transformers.LongT5ForConditionalGeneration(config)
    layers: Any = model.encoder.block
    with torch.no_grad():
        for name, parameter in layers[1].layer[0].named_parameters():
            if name.endswith(("SelfAttention.q.weight", "SelfAttention.k.weight")):
                parameter.mul_(gain)
    return save_checkpoint(model, folder, tokenizer=True)


@pytest.mark.parametrize("num_tokens", [32, 48, 100])
@pytest.mark.parametrize("attention", ["local", "transient-global"])
def test_a_mask_that_only_float32_holds_is_no_fault(
    attention: str, num_tokens: int, tmp_path: Path
) -> None:
    # In float16 a row of padding that fills blocks alone is NaN, in transformers itself too.
    report = scan(
        _long_t5(tmp_path, attention),
        attn_implementations=["eager"],
        prompts=[list(range(num_tokens))],
        quick=True,  # pads nothing
    )
    assert grave(report) == []
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert all(run.overflows == () for run in report.runs)
    assert all(row.abs_max < 1e4 for row in report.headroom)


@pytest.mark.parametrize("attention", ["local", "transient-global"])
def test_scores_that_overflow_under_such_a_mask_are_named(attention: str, tmp_path: Path) -> None:
    folder = _long_t5(tmp_path, attention, gain=2e3)
    report = scan(folder, dtypes=["float16"], attn_implementations=["eager"], quick=True)
    first = run_of(report, "float16", "eager").first_overflow
    assert first is not None
    assert first.layer == 1
    assert first.op == "aten.bmm"
    assert first.mechanism is Mechanism.ATTENTION_SCORES
    assert first.reference_abs_max is not None
    assert first.reference_abs_max < 1e8


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "mixtral"])
def test_a_healthy_live_module_is_safe_in_every_configuration(name: str) -> None:
    report = scan(tiny(name), quick=True)
    assert grave(report) == []
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert len(report.runs) == 3 * len(attn_implementations(name))


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize(
    ("layers", "tie"),
    [
        pytest.param((2,), 1e-3, id="last-layer"),
        pytest.param((0,), 1e-1, id="first-layer"),
        pytest.param((0, 1, 2), 1e-2, id="every-layer"),
    ],
)
def test_tokens_sent_to_other_experts_are_no_finding(
    name: str, layers: tuple[int, ...], tie: float, tmp_path: Path
) -> None:
    model = undecided(name, layers=layers, tie=tie)
    save_checkpoint(model, tmp_path, tokenizer=True)
    report = scan(tmp_path, dtypes=["bfloat16"], attn_implementations=["eager"])
    run = run_of(report, "bfloat16", "eager")
    agreement = [layer.routing_agreement for layer in run.layers]
    assert all(share is not None for share in agreement)
    assert min(share for share in agreement if share is not None) < 1
    assert grave(report) == []
    assert run.verdict is Verdict.SAFE
    assert run.overflows == ()


def test_agreement_is_whole_where_routers_decide(tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen3_moe"), tmp_path, tokenizer=True)
    report = scan(tmp_path, dtypes=["bfloat16"], attn_implementations=["eager"], quick=True)
    run = run_of(report, "bfloat16", "eager")
    assert [layer.routing_agreement for layer in run.layers] == [1.0, 1.0, 1.0]
    assert all(layer.relative_error_same_routing == layer.relative_error for layer in run.layers)
    assert run.logits is not None
    assert run.logits.kl_divergence_mean_same_routing == run.logits.kl_divergence_mean
