"""What kernels read, against plain transformers with hooks of its own."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from precheck.pipeline import scan
from precheck.records.sizes import Operand
from tests.measure.scans import passes, plain_inputs
from tests.tiny_models import save_checkpoint, tiny_config, tiny_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from precheck.measure.probes.batch import Batch
    from precheck.records.report import Report
    from precheck.records.sizes import OperandPeak
    from tests.measure.scans import Pass

Figures = dict[tuple[Operand, int | None], float]

WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
"""Inputs of linear layers have neighbours to sum up, 128 of them."""
READ = (Operand.LINEAR_INPUT, Operand.SUM_OF_32, Operand.ABS_SUM_OF_128, Operand.LINEAR_OUTPUT)
PADDED = {"qwen2", "opt"}
LINEAR = ("llama", "qwen2", "gemma3", "gpt2", "gpt_neox", "opt", "phi3", "t5")


def model_of(name: str) -> PreTrainedModel:
    config = tiny_config(name, num_layers=2)
    if name in {"llama", "gemma3"}:
        for setting, value in WIDE.items():
            setattr(config, setting, value)
    return tiny_of(config)


def layer_of(module: str) -> int | None:
    return next((int(part) for part in module.split(".") if part.isdigit()), None)


def real(tensor: Tensor, batch: Batch) -> Tensor:
    """Of ``(batch, seq, columns)`` the real tokens."""
    if batch.attention_mask is None or tensor.shape[:2] != batch.attention_mask.shape:
        return tensor
    return tensor[batch.attention_mask.bool()]


def keep(found: Figures, operand: Operand, layer: int | None, value: float) -> None:
    found[operand, layer] = max(found.get((operand, layer), 0.0), value)


def linears(model: PreTrainedModel) -> Iterable[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            yield name, module


@torch.no_grad()
def plainly(model: PreTrainedModel, runs: Iterable[Pass]) -> Figures:
    """What the linear layers of plain forwards read and give, as the runs attend."""
    found: Figures = {}
    current: list[Batch] = []

    def hook(name: str) -> Any:
        def read(_module: object, args: tuple[Tensor, ...], output: Tensor) -> None:
            states, layer = real(args[0], current[-1]), layer_of(name)
            keep(found, Operand.LINEAR_INPUT, layer, float(states.abs().max()))
            keep(found, Operand.LINEAR_OUTPUT, layer, float(real(output, current[-1]).abs().max()))
            for operand, size in ((Operand.SUM_OF_32, 32), (Operand.ABS_SUM_OF_128, 128)):
                if states.shape[-1] % size == 0:
                    of_group = states.abs() if size == 128 else states
                    sums = of_group.reshape(-1, size).sum(-1).abs()
                    keep(found, operand, layer, float(sums.max()))

        return read

    handles = [module.register_forward_hook(hook(name)) for name, module in linears(model)]
    for run in runs:
        current.append(run.batch)
        model.set_attn_implementation(run.skeleton.attn_implementation)
        model(**plain_inputs(run.batch), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def rows_of(report: Report, *operands: Operand) -> Figures:
    """The largest of each layer, in whatever section."""
    found: Figures = {}
    for row in report.operands:
        if row.operand in operands:
            keep(found, row.operand, row.layer, row.value)
    return found


def scanned(folder: Path, **options: Any) -> tuple[Report, list[Pass]]:
    """A float32 scan, and its runs over each batch."""
    with passes() as found:
        report = scan(folder, **{"dtypes": ["float32"], "quick": True, **options})
    return report, found


@pytest.mark.parametrize("name", LINEAR)
def test_what_linear_layers_read_is_that_of_plain_transformers(name: str, tmp_path: Path) -> None:
    """Bit for bit."""
    model = model_of(name)
    save_checkpoint(model, tmp_path, tokenizer=True)
    model = type(model).from_pretrained(tmp_path)
    is_quick = name not in PADDED  # one short batch
    report, runs = scanned(tmp_path, quick=is_quick)
    assert is_quick or any(run.batch.is_padded for run in runs)
    expected = plainly(model, runs)
    assert expected
    assert rows_of(report, *READ) == expected
    assert (Operand.ABS_SUM_OF_128, 0) in expected or name not in {"llama", "gemma3"}


def test_streamed_and_resident_models_give_the_same(tmp_path: Path) -> None:
    model = model_of("llama")
    save_checkpoint(model, tmp_path, tokenizer=True)
    streamed, _ = scanned(tmp_path)
    resident, _ = scanned(tmp_path, resident=True)
    assert streamed.operands == resident.operands
    assert streamed.operands


def attentions(model: PreTrainedModel, runs: Iterable[Pass]) -> dict[Operand, list[float]]:
    """Scores, products and sums of every attention call, in float64."""
    found: dict[Operand, list[float]] = defaultdict(list)

    def attend(
        _module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **_: object,
    ) -> tuple[Tensor, None]:
        groups = query.shape[1] // key.shape[1]
        keys, values = (each.repeat_interleave(groups, 1).double() for each in (key, value))
        queries = query.double() * scaling
        scores = queries @ keys.transpose(2, 3)
        channels = queries.abs().amax(2) * keys.abs().amax(2)
        found[Operand.SCORES].append(float(scores.abs().max()))
        found[Operand.QUERY_KEY_PRODUCT].append(float(channels.max()))
        if attention_mask is None:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        else:
            scores = scores + attention_mask
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        found[Operand.VALUE_SUM].append(float((weights @ values).abs().max()))
        output = (scores.softmax(-1) @ values).to(query.dtype)
        return output.transpose(1, 2).contiguous(), None

    ALL_ATTENTION_FUNCTIONS.register("float64", attend)
    with torch.no_grad():
        model.set_attn_implementation("float64")
        for run in runs:
            if not run.batch.is_padded:
                model(**plain_inputs(run.batch), use_cache=False)
    return found


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_what_attention_forms_is_that_of_float64(
    name: str, attn_implementation: str, tmp_path: Path
) -> None:
    model = model_of(name)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.mul_(1e5)  # sums of values beyond float16
            layer.self_attn.o_proj.weight.mul_(1e-5)
    save_checkpoint(model, tmp_path, tokenizer=True)
    config = tmp_path / "config.json"  # the default is measured too
    stored = json.loads(config.read_text()) | {"attn_implementation": attn_implementation}
    config.write_text(json.dumps(stored))
    report, runs = scanned(tmp_path, attn_implementations=[attn_implementation])
    assert {run.skeleton.attn_implementation for run in runs} == {attn_implementation}
    expected = {operand: max(values) for operand, values in attentions(model, runs).items()}
    for operand, value in expected.items():
        found = max(rows_of(report, operand).values())
        assert found == pytest.approx(value, rel=1e-4), operand


def test_a_sum_of_values_that_fits_whatever_the_scores_are_is_not_computed(tmp_path: Path) -> None:
    save_checkpoint(model_of("llama"), tmp_path, tokenizer=True)
    report, _ = scanned(tmp_path, attn_implementations=["sdpa"])
    assert not rows_of(report, Operand.VALUE_SUM)
    assert rows_of(report, Operand.SCORES)


def peak(report: Report, operand: Operand, layer: int) -> OperandPeak:
    return next(row for row in report.operands if (row.operand, row.layer) == (operand, layer))


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert"])
def test_means_of_squares_are_those_of_the_residual_stream(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    save_checkpoint(model, tmp_path, tokenizer=True)
    report, runs = scanned(tmp_path)
    largest: dict[str, float] = {}
    norms = [
        (each, module)
        for each, module in model.named_modules()
        if each.endswith(("layernorm", "LayerNorm")) and layer_of(each) == 1
    ]
    # what a norm behind a sub-block reads is no residual stream
    norms = [pair for pair in norms if name != "gemma3" or "post" not in pair[0]]

    def hook(each: str) -> Any:
        def read(_module: object, args: tuple[Tensor, ...]) -> None:
            squares = real(args[0], current[-1]).square().mean(-1)
            largest[each] = max(largest.get(each, 0.0), float(squares.max()))

        return read

    current: list[Batch] = []
    for each, module in norms:
        module.register_forward_pre_hook(hook(each))
    with torch.no_grad():
        for run in runs:
            current.append(run.batch)
            model(**plain_inputs(run.batch))
    row = peak(report, Operand.NORM_MEAN_SQUARE, 1)
    assert largest
    assert row.value == pytest.approx(max(largest.values()), rel=1e-6)
    assert row.module in largest
