"""How far the built-in probes go: odd first tokens, and a text near the context."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaMLP

from precheck.measure.probes.builtin import LONG_TOKENS
from precheck.measure.probes.context import MOST_WORK, context_tokens
from precheck.measure.probes.first_tokens import odd_first_tokens
from precheck.measure.probes.vocabulary import Vocabulary
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from tests import hand_made
from tests.tiny_models import PAD, VOCAB_SIZE, save_checkpoint, tiny, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from precheck.records.report import Report

pytestmark = pytest.mark.usefixtures("far")
SPELLED = Vocabulary(size=VOCAB_SIZE, tokenizer=tiny_tokenizer())
MUTE = Vocabulary(size=VOCAB_SIZE, problem="no tokenizer: none")
ODD = 41
LONGEST = 2048


@pytest.mark.parametrize("change", ["peak", "long", "short"])
def test_a_token_whose_embedding_stands_out_is_tried(change: str) -> None:
    embedding = torch.randn(VOCAB_SIZE, 64, generator=torch.Generator().manual_seed(3))
    assert ODD not in odd_first_tokens(MUTE, embedding)
    if change == "peak":
        embedding[:, 5] *= 1e-3
        embedding[ODD, 5] = 0.1
    else:
        embedding[ODD] *= 3.0 if change == "long" else 0.1
    assert ODD in odd_first_tokens(MUTE, embedding)


def test_without_an_embedding_single_characters_are_tried_and_no_special_token() -> None:
    tokens = odd_first_tokens(SPELLED, None)
    assert tokens
    assert len(tokens) == len(set(tokens))
    assert not set(tokens) & set(SPELLED.tokenizer.all_special_ids)
    embedding = torch.ones(VOCAB_SIZE, 8)
    embedding[PAD] = 100.0
    assert PAD not in odd_first_tokens(SPELLED, embedding)


@pytest.mark.parametrize(
    ("num_parameters", "max_context", "expected"),
    [
        (1_000_000, 131_072, LONGEST),
        (1_000_000, None, LONGEST),
        (1_000_000, 512, 512),
        (1_000_000, 256, 0),
        (135_000_000, 8192, MOST_WORK // 135_000_000),
        (7_000_000_000, 32_768, 0),
    ],
)
def test_the_longest_probe_is_bounded_by_the_context_and_by_work(
    num_parameters: int, max_context: int | None, expected: int
) -> None:
    facts = replace(
        hand_made.measurements().model, num_parameters=num_parameters, max_context=max_context
    )
    assert context_tokens(facts) == expected


def test_positions_that_were_rounded_need_a_long_text_whatever_the_size() -> None:
    facts = replace(
        hand_made.measurements().model, num_parameters=7_000_000_000, max_context=32_768
    )
    assert context_tokens(facts) == 0
    assert context_tokens(facts, is_needed=True) == LONGEST


def with_a_private_dimension(token: int | None) -> PreTrainedModel:
    """A model whose gated product is huge if ``token`` comes first, and only then."""
    model = tiny("qwen3")
    carrier, copy = 20, 21
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:, [carrier, copy]] = 0.0
        if token is not None:
            embedding[token, carrier] = 6.0 * float(embedding.abs().max())
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for reads in (attention.q_proj, attention.k_proj, attention.v_proj):
                reads.weight[:, [carrier, copy]] = 0.0
            for reads in (mlp.gate_proj, mlp.up_proj):
                reads.weight[:, [carrier, copy]] = 0.0
            for writes in (attention.o_proj, mlp.down_proj):
                writes.weight[[carrier, copy]] = 0.0
        layer = model.model.layers[1]
        layer.self_attn.v_proj.weight[0] = 0.0
        layer.self_attn.v_proj.weight[0, carrier] = 1.0
        layer.self_attn.o_proj.weight[copy] = 0.0
        layer.self_attn.o_proj.weight[copy, 0] = 1.0
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
            projection.weight[0] = 0.0
            projection.weight[0, copy] = 400.0
        layer.mlp.down_proj.weight[:, 0] = 0.0
        layer.mlp.down_proj.weight[5, 0] = 1e-4
    return model


@pytest.mark.parametrize("token", [ODD, None])
def test_a_model_that_breaks_on_one_first_token_is_found(token: int | None, tmp_path: Path) -> None:
    folder = save_checkpoint(with_a_private_dimension(token), tmp_path, tokenizer=True)
    report = scan(folder, dtypes=("float16", "float32"), attn_implementations=("sdpa",))
    half = next(run for run in report.runs if run.dtype == "float16")
    if token is None:
        assert half.verdict is Verdict.SAFE
        return
    assert half.verdict is Verdict.OVERFLOW
    assert half.first_overflow is not None
    assert half.first_overflow.mechanism is Mechanism.GATED_PRODUCT
    assert half.first_overflow.layer == 1
    assert f"first_{token}" in half.first_overflow.probes


def with_positions_in_the_scores(bias_free: bool, folder: Path) -> Path:
    """BLOOM, whose scores are little more than a bias for the absolute position of a key.

    In bfloat16 the bias of the steepest heads has whole steps beyond a few hundred tokens. Without
    biases, attention is nearly uniform.
    """
    config: Any = transformers.BloomConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, n_layer=3, n_head=4
    )
    config.seq_length = 2048
    model: Any = transformers.BloomForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                std = 0.3 if "embeddings.weight" in name else 0.06
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        for block in model.transformer.h:
            attention = block.self_attention
            parts = attention.query_key_value.weight.view(4, 3, 32, 128)
            parts[:, :2] *= 0.2
            parts[:, 2] *= 0.1 if bias_free else 3.0
            attention.dense.weight *= 0.1 if bias_free else 3.0
    return save_checkpoint(model, folder, tokenizer=True)


@pytest.mark.parametrize("is_healthy", [False, True])
def test_what_is_lost_far_from_the_first_token_is_found(is_healthy: bool, tmp_path: Path) -> None:
    folder = with_positions_in_the_scores(is_healthy, tmp_path)
    report = scan(folder, dtypes=("float16", "bfloat16", "float32"))
    verdicts = {run.dtype: run.verdict for run in report.runs}
    assert verdicts[Dtype.FLOAT16] is Verdict.SAFE
    if is_healthy:
        assert verdicts[Dtype.BFLOAT16] is Verdict.SAFE
        return
    assert verdicts[Dtype.BFLOAT16] is Verdict.DEGRADED
    (finding,) = [finding for finding in report.findings if finding.code == "PC201"]
    assert finding.layer == 0
    assert "biases added" in finding.message


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Path:
    return save_checkpoint(tiny("llama"), tmp_path, tokenizer=True)


def longest(report: Report) -> int:
    return report.coverage.longest_probe_tokens


def test_a_scan_does_without_the_long_text_where_memory_ends(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scan(tiny_llama, dtypes=("float16", "float32"))
    forward: Any = LlamaMLP.forward

    def needs_memory(module: Any, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] > LONG_TOKENS:
            raise MemoryError
        return forward(module, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", needs_memory)
    report = scan(tiny_llama, dtypes=("float16", "float32"))
    assert (report.complete, report.coverage.probes_not_run) == (True, ("context (out of memory)",))
    assert longest(report) == LONG_TOKENS < longest(whole)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}


@pytest.mark.parametrize("has_loop", [False, True])
def test_a_loop_over_tokens_is_not_gone_through_for_the_long_text(
    has_loop: bool, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward: Any = LlamaMLP.forward

    def by_token(module: Any, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([forward(module, token) for token in hidden.split(1, dim=1)], dim=1)

    if has_loop:
        monkeypatch.setattr(LlamaMLP, "forward", by_token)
        monkeypatch.setattr("precheck.measure.run_waves.MOST_ADDED_OPS", 1000)
    report = scan(tiny_llama, dtypes=("float32",))
    too_long = ("context (too many steps, one per token)",) if has_loop else ()
    assert report.coverage.probes_not_run == too_long
    assert (longest(report) > LONG_TOKENS) is not has_loop
