"""A format that a model has no use for makes its run fail with the reason, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from transformers.models.llama.modeling_llama import LlamaAttention

from precheck.pipeline import scan
from tests.tiny_models import VOCAB_SIZE, tiny

if TYPE_CHECKING:
    import pytest

    from precheck.records.report import Report

RECURRENT = transformers.JambaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    attn_layer_period=8,
    attn_layer_offset=7,
    num_experts=2,
    mamba_d_state=8,
    mamba_dt_rank=8,
)


def scanned(model: Any, *, generate: int = 2) -> Report:
    return scan(
        model,
        quick=True,
        dtypes=["bfloat16"],
        attn_implementations=["eager"],
        kv_cache_dtypes=["fp8_e4m3"],
        quantizations=["int4"],
        generate=generate,
    )


def assert_cache_alone_failed(report: Report, reason: str) -> None:
    failures = {(run.kv_cache_dtype, run.quantization): run.failure for run in report.runs}
    assert failures == {(None, None): None, ("fp8_e4m3", None): reason, (None, "int4"): None}


def test_bert_attends_to_later_tokens() -> None:
    report = scanned(tiny("bert"), generate=0)
    assert_cache_alone_failed(report, "the model takes no key-value cache")


def test_an_encoder_with_a_head_that_could_decode() -> None:
    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    report = scanned(transformers.BertLMHeadModel(config).eval(), generate=0)
    reason = "tokens attend to later ones: a key-value cache is of no use"
    assert_cache_alone_failed(report, reason)


def test_layers_that_keep_recurrent_states() -> None:
    model = transformers.JambaForCausalLM(RECURRENT).eval()
    assert_cache_alone_failed(scanned(model), "no layer has keys and values to store")


def test_a_model_that_does_not_use_the_cache_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LlamaAttention.forward

    def without_cache(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        del past_key_values
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", without_cache)
    report = scanned(tiny("llama", num_layers=2))
    reason = "no layer stores its keys in the key-value cache of transformers"
    assert_cache_alone_failed(report, reason)
    (failed,) = (run for run in report.runs if run.kv_cache_dtype)
    assert {one.error for one in failed.generations} == {f"UnsupportedConfigurationError: {reason}"}
