"""Planted models that leave float16 inside engines, path by path, and twins that do not."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch

from precheck.facts.float16_paths import Float16Path, table
from precheck.judge.report import judge_again
from precheck.pipeline import scan
from precheck.records.sizes import Operand
from tests.tiny_models import PAD, save_checkpoint, tiny_config, tiny_of

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from precheck.records.report import Report

PATHS = table().path
HEAD_DIM, NUM_LAYERS = 32, 4
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": HEAD_DIM}


@torch.no_grad()
def planted(name: str, size: float) -> PreTrainedModel:
    """A tiny model with one large operand in each layer; ``size`` 1 is beyond every limit."""
    config = tiny_config(name, num_layers=NUM_LAYERS)
    if name == "qwen2":
        for setting, value in WIDE.items():
            setattr(config, setting, value)
    model = tiny_of(config)
    PLANTS[name](model, size)
    return model


def plant_dense(model: PreTrainedModel, size: float) -> None:
    products, scores, sums, branch = (layer for layer in model.model.layers)
    # what down_proj reads, its neighbours and a group of them
    products.mlp.gate_proj.weight.mul_(300 * size)
    products.mlp.up_proj.weight.mul_(300)
    products.mlp.down_proj.weight.mul_(1e-6)
    # scores, by one channel that RoPE hardly turns
    for projection in (scores.self_attn.q_proj, scores.self_attn.k_proj):
        projection.bias[HEAD_DIM - 1 :: HEAD_DIM] = 1_000 * size
    # equal scores sum up values
    sums.self_attn.q_proj.weight.zero_()
    sums.self_attn.q_proj.bias.zero_()
    sums.self_attn.v_proj.bias[0] = 60_000 * size
    sums.self_attn.o_proj.weight.mul_(1e-6)
    # what is added to the residual stream, which the norm behind it squares
    branch.self_attn.v_proj.bias.fill_(1_000 * size)
    branch.self_attn.o_proj.weight.fill_(0.0)
    branch.self_attn.o_proj.weight[0] = 1.0
    # a stored weight that no token of the probes reads
    model.model.embed_tokens.weight[PAD, 0] = 70_000 * size


def plant_experts(model: PreTrainedModel, size: float) -> None:
    for name, parameter in model.model.layers[1].named_parameters():
        if name.endswith("gate_up_proj"):
            parameter.mul_(300 * size**0.5)
        elif name.endswith("down_proj"):
            parameter.mul_(1e-6)


PLANTS = {"qwen2": plant_dense, "mixtral": plant_experts}
LAYERS = {
    Operand.LINEAR_INPUT: (0, "mlp.down_proj"),
    Operand.SUM_OF_32: (0, "mlp.down_proj"),
    Operand.ABS_SUM_OF_128: (0, "mlp.down_proj"),
    Operand.SCORES: (1, "self_attn"),
    Operand.QUERY_KEY_PRODUCT: (1, "self_attn"),
    Operand.VALUE_SUM: (2, "self_attn"),
    Operand.BRANCH: (3, "self_attn.o_proj"),
    Operand.LINEAR_OUTPUT: (3, "self_attn.o_proj"),
    Operand.NORM_MEAN_SQUARE: (3, "post_attention_layernorm"),
    Operand.EXPERT_INPUT: (1, "mlp.experts"),
    Operand.WEIGHT: (None, "embed_tokens.weight"),
}
"""Where each operand is planted."""
SMALL = 0.001


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The report on a planted model, by architecture and size."""

    @cache
    def report(name: str, size: float) -> Report:
        folder: Path = tmp_path_factory.mktemp(name)
        save_checkpoint(planted(name, size), folder, tokenizer=True)
        return scan(folder, dtypes=["float32"], quick=True)

    return report


def reaches(path: Float16Path, report: Report) -> bool:
    if path.is_fixed:  # told of where a device is named
        report = judge_again(report, gpus=["L4", "M4 Pro", "MI300X"])
    return any(
        finding.engine == path.engine and f"{path.where}: {path.function}" in finding.message
        for finding in report.findings
    )


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.id)
def test_a_plant_reaches_the_path_and_its_twin_does_not(path: Float16Path, scanned: object) -> None:
    assert callable(scanned)
    name = "mixtral" if path.operand is Operand.EXPERT_INPUT else "qwen2"
    report = scanned(name, 1.0)
    assert reaches(path, report)
    assert not reaches(path, scanned(name, SMALL))
    layer, module = LAYERS[path.operand]
    if path.operand is Operand.WEIGHT:
        assert report.checkpoint.out_of_float16_range[0].name.endswith(module)
        return
    largest = max(
        (row for row in report.operands if row.operand is path.operand), key=lambda row: row.value
    )
    assert largest.layer == layer
    assert largest.module.endswith(module)


@pytest.mark.parametrize("name", PLANTS)
def test_a_healthy_model_is_silent(name: str, scanned: object) -> None:
    assert callable(scanned)
    twin = scanned(name, SMALL)
    assert twin.operands
    assert [each for each in twin.findings if each.engine is not None] == []
