"""What a scan says is what the model really computes: bit for bit, and against float64."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.checkpoint.architecture import find_architecture
from precheck.measure.watch.fused_scores import raw_score_abs_max
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.real_tokens import RealTokens
from precheck.pipeline import scan
from precheck.records.mechanism import Mechanism
from precheck.records.traces import ODD_START
from tests.measure.scans import (
    Pass,
    fault_named,
    passes,
    plain_inputs,
    plain_pass,
    run_of,
)
from tests.planted import PlantedFault, planted, planted_checkpoint
from tests.tiny_models import (
    TINY,
    architectures,
    attn_implementations,
    save_checkpoint,
    tiny,
    tiny_inputs,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from precheck.measure.probes.batch import Batch
    from precheck.records.report import Report
    from precheck.records.traces import Headroom

PRECISIONS = ("float32", "float16", "bfloat16")
NUM_BATCHES = 5
"""Of the built-in probes."""


def same_bits(tensor: Tensor, expected: Tensor) -> bool:
    """Equal in every bit, except that any NaN equals any other; -0 and 0 differ."""
    if tensor.dtype is not expected.dtype or tensor.shape != expected.shape:
        return False
    both_nan = tensor.isnan() & expected.isnan()
    width = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return bool((both_nan | (tensor.view(width) == expected.view(width))).all())


def plain_model(name: str, folder: Path, dtype: str, attn: str) -> PreTrainedModel:
    return type(tiny(name, num_layers=1)).from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attn
    )


@pytest.mark.parametrize("name", architectures(TINY, unpinned=["gemma2"]))
@pytest.mark.parametrize("left_padded", [False, True])
def test_watching_changes_no_bit(name: str, left_padded: bool) -> None:
    inputs = tiny_inputs(name, left_padded=left_padded)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model: Any = tiny(name, num_layers=2)
        model = model.to(dtype)
        with torch.no_grad():
            bare = model(**inputs).logits
            stack = ModuleStack(model)
            real = real_tokens_of(inputs)
            watcher = OpWatcher(
                stack=stack, parameters=Parameters(), real_tokens=real, check=lambda: None
            )
            try:
                with watcher:
                    watched = model(**inputs).logits
            finally:
                stack.detach()
            after = model(**inputs).logits
        assert watcher.num_watched > 20
        assert same_bits(watched, bare)
        assert same_bits(after, bare)


def real_tokens_of(inputs: dict[str, Tensor]) -> RealTokens:
    rows, length = inputs["input_ids"].shape
    return RealTokens(num_rows=rows, length=length, mask=inputs["attention_mask"].bool())


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", architectures(TINY))
def test_lockstep_runs_equal_plain_runs_bit_for_bit(name: str, tmp_path: Path) -> None:
    save_checkpoint(tiny(name), tmp_path, tokenizer=True)
    with passes() as collected:
        scan(tmp_path)
    assert len(collected) == NUM_BATCHES * 3 * len(attn_implementations(name))
    assert any(one.batch.is_padded for one in collected)
    for configuration in sorted({one.configuration for one in collected}):
        model = plain_model(name, tmp_path, *configuration)
        for one in collected:
            if one.configuration == configuration:
                assert_equals_plain(one, model)


def assert_equals_plain(one: Pass, model: PreTrainedModel) -> None:
    layers, logits = plain_pass(model, one.batch, [name for name, _ in one.layers])
    assert [name for name, _ in one.layers] == [name for name, _ in layers]
    assert one.layers
    for (name, hidden), (_, expected) in zip(one.layers, layers, strict=True):
        assert same_bits(hidden, expected), name
    assert same_bits(one.final[0], logits)
    assert one.skeleton.attn_implementation == model.config._attn_implementation  # noqa: SLF001


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    "fault",
    planted(map(fault_named, ["qwen2-scores", "gemma3-norm-cast", "t5-product", "llama-weight"])),
    ids=lambda fault: fault.name,
)
def test_broken_lockstep_runs_equal_plain_runs_bit_for_bit(
    fault: PlantedFault, tmp_path: Path
) -> None:
    # What is looked into is called again: that must not change what comes after it.
    planted_checkpoint(fault, tmp_path, tokenizer=True)
    with passes() as collected:
        scan(tmp_path, dtypes=["float16", "bfloat16"], attn_implementations=["eager"])
    runs = [one for one in collected if one.skeleton.attn_implementation == "eager"]
    assert len(runs) == NUM_BATCHES * 3
    for one in runs:
        assert_equals_plain(one, plain_model(fault.architecture, tmp_path, *one.configuration))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", architectures(["qwen2", "gemma3", "gpt2", "mixtral", "t5"]))
def test_a_live_module_runs_as_its_checkpoint_would(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    save_checkpoint(model, tmp_path, tokenizer=False)
    with passes() as collected:
        scan(model, quick=True)
    assert len(collected) == 3 * len(attn_implementations(name))
    for one in collected:
        assert_equals_plain(one, plain_model(name, tmp_path, *one.configuration))


# Against float64, computed from plain runs.


@dataclass
class Oracle:
    """The statistics of one run over all batches, by their definitions."""

    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    reference_layers: dict[str, list[Tensor]] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)
    reference_logits: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    probes: list[str] = field(default_factory=list)

    @property
    def kl(self) -> Tensor:
        """KL(reference || run) of every token, nats."""
        values = []
        for logits, expected in zip(self.logits, self.reference_logits, strict=True):
            run, reference = logits.softmax(-1).log(), expected.softmax(-1).log()
            values.append((reference.exp() * (reference - run)).sum(-1))
        return torch.cat(values)

    @property
    def top1(self) -> float:
        pairs = zip(self.logits, self.reference_logits, strict=True)
        same = [
            (logits.argmax(-1) == expected.argmax(-1))[logits.isfinite().all(-1)]
            for logits, expected in pairs
        ]
        return float(torch.cat(same).double().mean())

    @property
    def divergence(self) -> tuple[str, int] | None:
        """Probe and position of the first other choice; the first probe of equal positions."""
        divergences = []
        for probe, logits, expected in zip(
            self.probes, self.logits, self.reference_logits, strict=True
        ):
            for position in range(len(logits)):
                if int(logits[position].argmax()) != int(expected[position].argmax()):
                    divergences.append((probe, position))
                    break
        return min(divergences, key=lambda pair: pair[1], default=None)

    @staticmethod
    def perplexity(logits: list[Tensor], targets: list[Tensor]) -> float:
        losses = [
            torch.nn.functional.cross_entropy(scores[:-1], tokens[1:], reduction="none")
            for scores, tokens in zip(logits, targets, strict=True)
            if tokens.numel()
        ]
        return math.exp(float(torch.cat(losses).mean()))


def oracle_of(
    model: PreTrainedModel,
    reference: PreTrainedModel,
    runs: list[Pass],
) -> Oracle:
    oracle = Oracle()
    for run in runs:
        names = [name for name, _ in run.layers]
        layers, logits = plain_pass(model, run.batch, names)
        reference_layers, reference_logits = plain_pass(reference, run.batch, names)
        for rows, outputs in ((oracle.layers, layers), (oracle.reference_layers, reference_layers)):
            for name, hidden in outputs:
                rows.setdefault(name, []).extend(real_rows(run.batch, hidden))
        oracle.logits += real_rows(run.batch, logits)
        oracle.reference_logits += real_rows(run.batch, reference_logits)
        for row, probe in enumerate(run.batch.probes):
            ids = real_rows(run.batch, run.batch.input_ids.unsqueeze(-1))[row].long()[:, 0]
            oracle.targets.append(ids[:0] if probe.kind in {"token_ids", ODD_START} else ids)
            oracle.probes.append(probe.name)
    return oracle


def real_rows(batch: Batch, tensor: Tensor) -> list[Tensor]:
    """The real tokens of every row, float64: those at the right, as padding is on the left."""
    rows = []
    for probe, row in zip(batch.probes, tensor, strict=True):
        is_input = len(row) == batch.input_ids.shape[1]
        rows.append(row[-probe.num_tokens :].double() if is_input else row.double())
    return rows


SUBJECTS = [
    ("qwen2", "bfloat16", "sdpa"),
    ("qwen2", "float16", "eager"),
    ("gemma2", "bfloat16", "eager"),
    ("gpt2", "float16", "sdpa"),
    ("mixtral", "bfloat16", "eager"),
    ("bert", "bfloat16", "sdpa"),
    ("t5", "float16", "eager"),
    ("t5", "bfloat16", "sdpa"),
]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(("name", "dtype", "attn"), architectures(SUBJECTS, unpinned=["gemma2"]))
def test_figures_of_a_run_equal_a_float64_oracle(
    name: str, dtype: str, attn: str, tmp_path: Path
) -> None:
    save_checkpoint(tiny(name), tmp_path, tokenizer=True)
    with passes() as collected:
        report = scan(tmp_path, dtypes=[dtype], attn_implementations=[attn])
    runs = [one for one in collected if one.configuration == (dtype, attn)]
    assert any(one.batch.is_padded for one in runs)
    oracle = oracle_of(
        plain_model(name, tmp_path, dtype, attn),
        plain_model(name, tmp_path, "float32", attn),
        runs,
    )
    assert_figures(report, oracle, dtype, attn, is_causal=name not in {"bert", "t5"})


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("name", ["qwen2-scores", "qwen2-masked-row", "llama-logits"])
def test_figures_of_a_broken_run_equal_a_float64_oracle(name: str, tmp_path: Path) -> None:
    fault = fault_named(name)
    planted_checkpoint(fault, tmp_path, tokenizer=True)
    attn = fault.attn_implementation
    with passes() as collected:
        report = scan(tmp_path, dtypes=["float16"], attn_implementations=[attn])
    runs = [one for one in collected if one.configuration == ("float16", attn)]
    oracle = oracle_of(
        plain_model(fault.architecture, tmp_path, "float16", attn),
        plain_model(fault.architecture, tmp_path, "float32", attn),
        runs,
    )
    run = run_of(report, "float16", attn)
    assert run.logits is not None
    assert run.logits.num_nonfinite == sum(int((~row.isfinite()).sum()) for row in oracle.logits)
    assert run.logits.num_nonfinite > 0
    assert_layers(report, oracle, "float16", attn)
    assert_divergence(report, oracle, "float16", attn)


def assert_figures(
    report: Report, oracle: Oracle, dtype: str, attn: str, *, is_causal: bool
) -> None:
    assert_layers(report, oracle, dtype, attn)
    logits = run_of(report, dtype, attn).logits
    assert logits is not None
    assert logits.num_nonfinite == 0
    assert logits.abs_max == max(float(row.abs().max()) for row in oracle.logits)
    # KL of nearly equal distributions is what is left of a difference: 1e-16 of 6 nats.
    assert logits.kl_divergence_mean == pytest.approx(float(oracle.kl.mean()), rel=1e-9, abs=1e-14)
    assert logits.kl_divergence_max == pytest.approx(float(oracle.kl.max()), rel=1e-9, abs=1e-14)
    assert logits.top1_agreement == pytest.approx(oracle.top1, rel=1e-12)
    assert_divergence(report, oracle, dtype, attn)
    if not is_causal:
        assert logits.perplexity is None
        return
    assert logits.perplexity == pytest.approx(
        Oracle.perplexity(oracle.logits, oracle.targets), rel=1e-9
    )
    assert logits.reference_perplexity == pytest.approx(
        Oracle.perplexity(oracle.reference_logits, oracle.targets), rel=1e-9
    )


def assert_divergence(report: Report, oracle: Oracle, dtype: str, attn: str) -> None:
    logits = run_of(report, dtype, attn).logits
    assert logits is not None
    first = logits.first_greedy_divergence
    assert (None if first is None else (first.probe, first.position)) == oracle.divergence


def assert_layers(report: Report, oracle: Oracle, dtype: str, attn: str) -> None:
    layers = run_of(report, dtype, attn).layers
    assert [trace.module for trace in layers] == list(oracle.layers)
    for trace in layers:
        states = torch.cat(oracle.layers[trace.module])
        reference = torch.cat(oracle.reference_layers[trace.module])
        finite = states[states.isfinite()]
        assert trace.abs_max == (float(finite.abs().max()) if finite.numel() else None)
        assert trace.num_nan == int(states.isnan().sum())
        assert trace.num_inf == int(states.isinf().sum())
        errors = (states - reference).norm(dim=-1) / reference.norm(dim=-1)
        errors = errors[errors.isfinite()]
        expected = float(errors.mean()) if errors.numel() else None
        assert trace.relative_error == (
            None if expected is None else pytest.approx(expected, rel=1e-9)
        )


# Headroom.


def headroom(report: Report, mechanism: Mechanism, layer: int) -> Headroom:
    rows = [
        row
        for row in report.headroom
        if (row.mechanism, row.layer) == (mechanism, layer) and "float16" in row.headroom_bits
    ]
    return max(rows, key=lambda row: row.abs_max)


def test_headroom_equals_what_hooks_and_float64_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=True)
    with passes() as collected:
        report = scan(tmp_path, dtypes=["float16"], attn_implementations=["eager"])
    batches = [one.batch for one in collected if one.configuration == ("float32", "eager")]
    model = plain_model("qwen2", tmp_path, "float32", "eager")
    expected: dict[tuple[Mechanism, int], float] = {}
    for batch in batches:
        for key, value in eager_peaks(model, batch, monkeypatch).items():
            expected[key] = max(value, expected.get(key, 0.0))
    assert len(expected) == 4 * 3
    for (mechanism, layer), value in expected.items():
        row = headroom(report, mechanism, layer)
        assert row.abs_max == pytest.approx(value, rel=1e-6), (mechanism, layer)
        assert row.headroom_bits["float16"] == pytest.approx(
            math.log2(65504.0 / row.abs_max), rel=1e-12
        )


def eager_peaks(
    model: PreTrainedModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> dict[tuple[Mechanism, int], float]:
    """Largest magnitudes of a Qwen2 layer at real tokens, by plain hooks."""
    peaks: dict[tuple[Mechanism, int], float] = {}
    handles = []

    def note(mechanism: Mechanism, layer: int, tensor: Tensor) -> None:
        real = max(float(row.abs().max()) for row in real_rows(batch, tensor))
        peaks[mechanism, layer] = max(real, peaks.get((mechanism, layer), 0.0))

    def output_of(mechanism: Mechanism, layer: int) -> Any:
        return lambda _, __, output: note(
            mechanism, layer, output[0] if isinstance(output, tuple) else output
        )

    def input_of(mechanism: Mechanism, layer: int) -> Any:
        return lambda _, args: note(mechanism, layer, args[0])

    for index, layer in enumerate(model.model.layers):
        norm, down = layer.post_attention_layernorm, layer.mlp.down_proj
        handles += [
            layer.register_forward_hook(output_of(Mechanism.RESIDUAL, index)),
            norm.register_forward_pre_hook(input_of(Mechanism.RESIDUAL, index)),
            down.register_forward_hook(output_of(Mechanism.MLP_OUTPUT, index)),
            down.register_forward_pre_hook(input_of(Mechanism.GATED_PRODUCT, index)),
        ]
    modeling = importlib.import_module("transformers.models.qwen2.modeling_qwen2")
    original = modeling.eager_attention_forward

    def recording(module: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Any:
        repeated = key.double().repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query.double() @ repeated.transpose(-1, -2)
        note(Mechanism.ATTENTION_SCORES, module.layer_idx, scores.transpose(1, 2))
        return original(module, query, key, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(modeling, "eager_attention_forward", recording)
        with torch.no_grad():
            model(**plain_inputs(batch), use_cache=False)
    for handle in handles:
        handle.remove()
    return peaks


@pytest.mark.pinned("older torch computes fused attention with plain products on a CPU")
@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama", "gpt2", "opt", "mixtral", "bert"])
def test_scores_of_fused_attention_are_those_that_eager_would_hold(
    name: str, tmp_path: Path
) -> None:
    save_checkpoint(tiny(name), tmp_path, tokenizer=False)
    prompts = [list(range(20 * row, 20 * row + 20)) for row in range(4)]
    fused, eager = (
        scan(
            tmp_path,
            dtypes=["float16"],
            attn_implementations=[attn],
            require=[],
            prompts=prompts,
        )
        for attn in ("sdpa", "eager")
    )
    for layer in range(3):
        computed, held = (
            headroom(report, Mechanism.ATTENTION_SCORES, layer) for report in (fused, eager)
        )
        assert computed.attn_implementation == held.attn_implementation == "eager"
        assert computed.abs_max == pytest.approx(held.abs_max, rel=1e-5)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_raw_scores_are_those_of_the_eager_product(heads: int, kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(heads + kv_heads)
    query = torch.randn(2, heads, 5, 16, generator=generator)
    key = torch.randn(2, kv_heads, 7, 16, generator=generator)
    eager = torch.matmul(query, key.repeat_interleave(heads // kv_heads, dim=1).transpose(2, 3))
    assert raw_score_abs_max(query, key) == pytest.approx(float(eager.abs().max()), rel=1e-6)


def test_raw_scores_of_shapes_that_do_not_fit_are_left_out() -> None:
    query = torch.ones(1, 4, 2, 8)
    assert raw_score_abs_max(query[0], query) is None
    assert raw_score_abs_max(query, torch.ones(1, 3, 2, 8)) is None
    assert raw_score_abs_max(query * torch.inf, query) is None


@pytest.mark.parametrize("name", architectures(TINY))
def test_units_cover_every_parameter(name: str) -> None:
    model = tiny(name, num_layers=2)
    units = find_architecture(model).units
    modules = [model.get_submodule(unit.name) for unit in units]
    covered = {id(parameter) for module in modules for parameter in module.parameters()}
    assert covered == {id(parameter) for parameter in model.parameters()}
