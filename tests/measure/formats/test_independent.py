"""What a run with a format computes is what plain transformers computes with formats made here.

Nothing of the package is used but its report: keys and values are rounded by a cache that is
written for these tests, weights and inputs by layers that are, and the figures are computed from
their logits in float64. The logits are the same bit for bit: a few formats in many architectures,
all in one whose heads and rows are wide enough for what rotates or has super-blocks.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from precheck.measure.format_search import FormatSearch
from precheck.pipeline import scan
from tests.measure.formats.plain_caches import (
    CACHES,
    ROTATED,
    rounding_cache,
    with_stored_scales,
)
from tests.measure.formats.plain_weights import WEIGHTS
from tests.measure.lockstep.test_truth import same_bits
from tests.measure.scans import Pass, passes, plain_inputs
from tests.tiny_models import VOCAB_SIZE, architectures, save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from precheck.records.report import Report, Run
    from precheck.records.traces import Probe

pytestmark = pytest.mark.usefixtures("native")

# Models.


def deepseek_v3() -> Any:
    """Its cache holds what keys and values are made of, and the rotated part of keys."""
    return transformers.DeepseekV3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=2,
        q_lora_rank=16,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
        initializer_range=0.1,
    )


def jamba() -> Any:
    """Recurrent layers without keys, between layers with them."""
    return transformers.JambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=100,
        expert_layer_offset=99,
        num_experts=2,
        mamba_d_state=8,
        mamba_dt_rank=8,
        use_mamba_kernels=False,
        initializer_range=0.1,
    )


def qwen3_next() -> Any:
    return transformers.Qwen3NextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        num_experts=0,
        mlp_only_layers=[0, 1, 2, 3],
        layer_types=["linear_attention", "full_attention"] * 2,
        initializer_range=0.1,
    )


OTHERS: dict[str, Callable[[], Any]] = {
    "deepseek_v3": deepseek_v3,
    "jamba": jamba,
    "qwen3_next": qwen3_next,
}
NAMES = ("llama", "qwen2", "gemma2", "gemma3", "qwen3_moe", "gpt2", "t5")
WIDE = "wide"
STORED_SCALE = "fp8_e4m3_checkpoint"
NEAR = 0.3
"""Of what a format that rotates changes: where sums have another order."""


def wide() -> Any:
    """Heads that llama.cpp rotates, rows that fill super-blocks, and some that do not."""
    return transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=320,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        initializer_range=0.1,
    )


def formats_of(name: str) -> tuple[list[str], list[str]]:
    """Of caches and of weights: all of one model, of the others those of each kind."""
    if name == WIDE:
        return [*CACHES, STORED_SCALE], list(WEIGHTS)
    caches = ["fp8_e4m3", "fp8_e5m2", "fp8_e4m3_calibrated", "int8", "int4"]
    return caches, ["int8_weight", "int4", "fp8"]


def add_scales(folder: Path) -> None:
    """Of keys and values, of each layer another."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for number, part in enumerate(f"{layer}.self_attn.{part}" for layer in (0, 1) for part in "kv"):
        tensors[f"model.layers.{part}_scale"] = torch.tensor(0.003 * (number + 1))
    save_file(tensors, path, metadata={"format": "pt"})


def model_named(name: str) -> Any:
    if name not in {*OTHERS, WIDE}:
        return tiny(name, num_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = wide() if name == WIDE else OTHERS[name]()
        return transformers.AutoModelForCausalLM.from_config(config).eval()


class Scanned:
    """One scan of a saved model with formats, and what its runs computed."""

    def __init__(self, name: str, folder: Path, **formats: Any) -> None:
        self.name, self.folder = name, folder
        save_checkpoint(model_named(name), folder, tokenizer=True)
        if name == WIDE:
            add_scales(folder)
        # the search would run variants of what is looked at here
        with mock.patch.object(FormatSearch, "run", return_value=None), passes() as found:
            self.report: Report = scan(folder, dtypes=["bfloat16"], quick=name == WIDE, **formats)
        self.passes = found

    @property
    def formatted(self) -> Iterator[tuple[Run, list[Pass]]]:
        """Runs with a format, and their passes, batch by batch."""
        for run in self.report.runs:
            formats = (run.kv_cache_dtype, run.quantization)
            if formats != (None, None):
                assert run.failure is None
                yield (
                    run,
                    [
                        one
                        for one in self.passes
                        if formats
                        == (
                            one.skeleton.configuration.kv_cache_dtype,
                            one.skeleton.configuration.quantization,
                        )
                    ],
                )

    def pass_without(self, one: Pass, *, dtype: str) -> Pass:
        """The same batch in a run without a format."""
        (found,) = (
            other
            for other in self.passes
            if not other.skeleton.configuration.has_format
            and other.configuration == (dtype, one.skeleton.attn_implementation)
            and other.batch.probes == one.batch.probes
        )
        return found

    def plain_model(self, run: Run) -> Any:
        return type(model_named(self.name)).from_pretrained(
            self.folder, dtype=torch.bfloat16, attn_implementation=run.attn_implementation
        )


CASES = [*architectures(NAMES), *OTHERS, WIDE]


@pytest.mark.parametrize("name", CASES)
def test_a_cache_is_what_a_rounding_cache_of_transformers_gives(name: str, tmp_path: Path) -> None:
    caches, _ = formats_of(name)
    scanned = Scanned(name, tmp_path, kv_cache_dtypes=caches)
    seen = []
    for run, of_run in scanned.formatted:
        model, format_ = scanned.plain_model(run), run.kv_cache_dtype or ""
        plain = with_stored_scales(tmp_path) if format_ == STORED_SCALE else CACHES[format_]
        for one in of_run:
            with torch.no_grad():
                logits = model(
                    **plain_inputs(one.batch),
                    use_cache=True,
                    past_key_values=rounding_cache(plain, model.config),
                ).logits
            if format_ in ROTATED:
                unstored = scanned.pass_without(one, dtype="bfloat16").final[0]
                assert is_near(one.final[0], logits, unstored), (format_, one.batch.probes)
            else:
                assert same_bits(one.final[0], logits), (format_, one.batch.probes)
        assert_figures(run, of_run, scanned)
        seen.append(run.kv_cache_dtype)
    assert seen == caches


def is_near(found: Tensor, expected: Tensor, unstored: Tensor) -> bool:
    """Whether logits differ little, beside what the format changes."""
    found, expected, unstored = found.double(), expected.double(), unstored.double()
    return float((found - expected).norm() / (unstored - expected).norm()) < NEAR


@pytest.mark.parametrize("name", CASES)
def test_weights_are_what_layers_with_rounded_weights_give(name: str, tmp_path: Path) -> None:
    _, weights = formats_of(name)
    scanned = Scanned(name, tmp_path, quantizations=weights)
    seen = []
    for run, of_run in scanned.formatted:
        model = scanned.plain_model(run)
        WEIGHTS[run.quantization or ""](model)
        for one in of_run:
            with torch.no_grad():
                logits = model(**plain_inputs(one.batch), use_cache=False).logits
            assert same_bits(one.final[0], logits), (run.quantization, one.batch.probes)
        assert_figures(run, of_run, scanned)
        seen.append(run.quantization)
    assert seen == weights


# Figures.


def assert_figures(run: Run, of_run: list[Pass], scanned: Scanned) -> None:
    """KL divergences and first choices of the report, against the same ones computed here."""
    loss, total = run.format_loss, run.logits
    assert loss is not None
    assert total is not None
    against_plain = compared(of_run, scanned, dtype="bfloat16")
    against_float32 = compared(of_run, scanned, dtype="float32")
    every = torch.cat([kl for _, kl, _ in against_plain])
    agrees = torch.cat([same for *_, same in against_plain])
    assert loss.kl_divergence_max == pytest.approx(float(every.max()), rel=1e-9)
    assert loss.top1_agreement == float(agrees.double().mean())
    assert loss.kl_divergence == pytest.approx(typical(against_plain), rel=1e-9)
    assert loss.kl_divergence > 0
    every = torch.cat([kl for _, kl, _ in against_float32])
    assert total.kl_divergence_mean == pytest.approx(float(every.mean()), rel=1e-9)
    assert total.kl_divergence_verdict == pytest.approx(typical(against_float32), rel=1e-9)


def compared(
    of_run: list[Pass], scanned: Scanned, *, dtype: str
) -> list[tuple[Probe, Tensor, Tensor]]:
    """By probe: KL divergence, nats, and whether the first choice is the same, of each token."""
    found = []
    for one in of_run:
        expected = scanned.pass_without(one, dtype=dtype).final[0].double()
        logits, mask = one.final[0].double(), one.batch.attention_mask
        log_p, log_q = expected.log_softmax(-1), logits.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        same = expected.argmax(-1) == logits.argmax(-1)
        for row, probe in enumerate(one.batch.probes):
            # what pads an encoder's input does not pad what the decoder writes
            is_token = torch.ones_like(kl[row], dtype=torch.bool)
            if mask is not None and one.batch.decoder_input_ids is None:
                is_token = mask[row].bool()
            found.append((probe, kl[row][is_token], same[row][is_token]))
    return found


def typical(by_probe: list[tuple[Probe, Tensor, Tensor]]) -> float:
    """The worst kind of ordinary text: the median of its texts' means without the worst 2 %."""
    kinds: dict[str, list[float]] = {}
    for probe, kl, _ in by_probe:
        if probe.is_judged:
            kept = sorted(kl.tolist())[: -math.ceil(0.02 * len(kl))]
            kind = "text" if probe.kind == "chat" else probe.kind
            kinds.setdefault(kind, []).append(statistics.fmean(kept))
    return max(map(statistics.median, kinds.values()))
