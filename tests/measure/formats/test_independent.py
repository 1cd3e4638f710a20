"""What a run with a format computes is what plain transformers computes with formats made here.

Nothing of the package is used but its report: keys and values are rounded by a cache that is
written here, weights and inputs by layers that are written here, and the figures are computed from
their logits in float64. The logits are the same bit for bit.
"""

from __future__ import annotations

import functools
import math
import statistics
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import linear
from transformers import DynamicCache, EncoderDecoderCache
from transformers.pytorch_utils import Conv1D

from precheck.measure.format_search import FormatSearch
from precheck.pipeline import scan
from tests.measure.formats.plain_experts import multiply_experts
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

# Formats of a cache, by torch's own casts.


def e4m3(states: Tensor) -> Tensor:
    clipped = states.float().clamp(-448, 448)
    return clipped.to(torch.float8_e4m3fn).to(states.dtype)


def e5m2(states: Tensor) -> Tensor:
    clipped = states.float().clamp(-57344, 57344)
    return clipped.to(torch.float8_e5m2).to(states.dtype)


def calibrated(states: Tensor) -> Tensor:
    """The largest number of the tensor becomes 448."""
    scale = states.float().abs().max() / 448
    return ((states.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(states.dtype)


def int8(states: Tensor) -> Tensor:
    """A scale for each token and head; halves are rounded away from zero."""
    scale = (states.float().abs().amax(-1, keepdim=True) / 127).clamp(min=1e-6)
    steps = states.float() * (1 / scale)
    whole = steps.abs().double().add(0.5).floor().float() * steps.sign()
    return (whole * scale).to(states.dtype)


def int4(states: Tensor) -> Tensor:
    """Groups of 64 of a head, or one for a shorter head; with an offset."""
    groups = []
    for values in states.float().split(64, dim=-1):
        lowest, highest = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        scale = (highest - lowest) / 15
        scale = scale.where(scale > 0, 1.0)
        groups.append(((values - lowest) / scale).round() * scale + lowest)
    return torch.cat(groups, dim=-1).to(states.dtype)


CACHES: dict[str, Callable[[Tensor], Tensor]] = {
    "fp8_e4m3": e4m3,
    "fp8_e5m2": e5m2,
    "fp8_e4m3_calibrated": calibrated,
    "int8": int8,
    "int4": int4,
}


class RoundingCache(DynamicCache):
    """Rounds what it is given, and keeps it as any cache does."""

    def __init__(self, rounded: Callable[[Tensor], Tensor], config: Any) -> None:
        super().__init__(config=config)
        self.rounded = rounded

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return super().update(self.rounded(key_states), self.rounded(value_states), *args, **kwargs)


def rounding_cache(rounded: Callable[[Tensor], Tensor], config: Any) -> Any:
    own = RoundingCache(rounded, config)
    if not config.is_encoder_decoder:
        return own
    return EncoderDecoderCache(own, RoundingCache(rounded, config))


# Formats of weights; rows are outputs.


def int8_rows(rows: Tensor) -> Tensor:
    scale = rows.float().abs().amax(-1, keepdim=True) / 127.5
    scale = scale.where(scale > 0, 1.0)
    steps = (rows.float() * (1 / scale)).round().clamp(-128, 127)
    return (steps * scale).to(rows.dtype)


def int4_rows(rows: Tensor) -> Tensor:
    """Groups of 128, with a scale in bfloat16."""
    groups = []
    for group in rows.float().split(128, dim=-1):
        scale = (group.abs().amax(-1, keepdim=True) / 7.5).bfloat16().float()
        scale = scale.where(scale > 0, 1.0)
        groups.append((group / scale).round().clamp(-8, 7) * scale)
    return torch.cat(groups, dim=-1).to(rows.dtype)


def fp8_rows(rows: Tensor) -> Tensor:
    """A scale for each row; stays in float32."""
    scale = (rows.float().abs().amax(-1, keepdim=True) / 448).clamp(min=4.359654017857143e-6)
    return (rows.float() / scale).to(torch.float8_e4m3fn).float() * scale


class Fp8Layer(nn.Module):
    """Weights and inputs in e4m3, multiplied in float32, and rounded once."""

    def __init__(self, layer: nn.Linear | Conv1D) -> None:
        super().__init__()
        rows = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        self.rows = fp8_rows(rows.detach())
        bias: Tensor | None = layer.bias
        self.bias = None if bias is None else bias.detach().float()
        self.is_transposed = isinstance(layer, Conv1D)
        self.weight = layer.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        values = fp8_rows(hidden_states)
        if self.is_transposed:  # the same kernel as in Conv1D
            shape = (*values.shape[:-1], self.rows.shape[0])
            columns = self.rows.T.contiguous()
            assert self.bias is not None
            found = torch.addmm(self.bias, values.view(-1, values.shape[-1]), columns).view(shape)
        else:
            found = linear(values, self.rows, self.bias)
        return found.to(hidden_states.dtype)


def layers_in(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    """Linear layers inside the decoder, and encoder, layers, with where they are."""
    stacks = ("layers.", "h.", "block.")
    return [
        (parent, key, layer)
        for name, parent in model.named_modules()
        for key, layer in parent.named_children()
        if isinstance(layer, nn.Linear | Conv1D)
        and any(f".{stack}" in f".{name}." for stack in stacks)
        and key != "router"
    ]


def experts_in(model: nn.Module) -> list[nn.Parameter]:
    return [
        each for name, each in model.named_parameters() if "experts." in name and each.dim() == 3
    ]


@torch.no_grad()
def store_weights(model: nn.Module, rounded: Callable[[Tensor], Tensor]) -> None:
    for _, _, layer in layers_in(model):
        if isinstance(layer, Conv1D):
            layer.weight.copy_(rounded(layer.weight.T).T)
        else:
            layer.weight.copy_(rounded(layer.weight))
    for experts in experts_in(model):
        experts.copy_(rounded(experts))


@torch.no_grad()
def multiply_in_fp8(model: nn.Module) -> None:
    for parent, key, layer in layers_in(model):
        setattr(parent, key, Fp8Layer(layer))
    multiply_experts(model, weights=fp8_rows, inputs=fp8_rows)


WEIGHTS: dict[str, Callable[[nn.Module], None]] = {
    "int8_weight": functools.partial(store_weights, rounded=int8_rows),
    "int4": functools.partial(store_weights, rounded=int4_rows),
    "fp8": multiply_in_fp8,
}

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


def model_named(name: str) -> Any:
    if name not in OTHERS:
        return tiny(name, num_layers=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(OTHERS[name]()).eval()


class Scanned:
    """One scan of a saved model with formats, and what its runs computed."""

    def __init__(self, name: str, folder: Path, **formats: Any) -> None:
        self.name, self.folder = name, folder
        save_checkpoint(model_named(name), folder, tokenizer=True)
        # the search would run variants of what is looked at here
        with mock.patch.object(FormatSearch, "run", return_value=None), passes() as found:
            self.report: Report = scan(folder, dtypes=["bfloat16"], **formats)
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


CASES = [*architectures(NAMES), *OTHERS]


@pytest.mark.parametrize("name", CASES)
def test_a_cache_is_what_a_rounding_cache_of_transformers_gives(name: str, tmp_path: Path) -> None:
    scanned = Scanned(name, tmp_path, kv_cache_dtypes=list(CACHES))
    seen = []
    for run, of_run in scanned.formatted:
        model, rounded = scanned.plain_model(run), CACHES[run.kv_cache_dtype or ""]
        for one in of_run:
            with torch.no_grad():
                logits = model(
                    **plain_inputs(one.batch),
                    use_cache=True,
                    past_key_values=rounding_cache(rounded, model.config),
                ).logits
            assert same_bits(one.final[0], logits), one.batch.probes
        assert_figures(run, of_run, scanned)
        seen.append(run.kv_cache_dtype)
    assert seen == list(CACHES)


@pytest.mark.parametrize("name", CASES)
def test_weights_are_what_layers_with_rounded_weights_give(name: str, tmp_path: Path) -> None:
    scanned = Scanned(name, tmp_path, quantizations=list(WEIGHTS))
    seen = []
    for run, of_run in scanned.formatted:
        model = scanned.plain_model(run)
        WEIGHTS[run.quantization or ""](model)
        for one in of_run:
            with torch.no_grad():
                logits = model(**plain_inputs(one.batch), use_cache=False).logits
            assert same_bits(one.final[0], logits), one.batch.probes
        assert_figures(run, of_run, scanned)
        seen.append(run.quantization)
    assert seen == list(WEIGHTS)


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
