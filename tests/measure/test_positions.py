"""Planted faults that show far from the first token are named; their healthy twins are silent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from precheck.pipeline import scan
from precheck.records.finding import Verdict
from tests.measure.probes.test_reach import with_positions_in_the_scores
from tests.measure.scans import run_of
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from precheck.records.report import Report

LENGTH = 4096
CODES = frozenset({"PC720", "PC721", "PC722", "PC723"})


def far(folder: Path, **options: Any) -> Report:
    options.setdefault("dtypes", ["bfloat16"])
    options.setdefault("attn_implementations", ["eager"])
    return scan(folder, quick=True, context=LENGTH, **options)


def codes(report: Report) -> dict[str, str]:
    """By run, the findings on positions."""
    return {
        report.runs[finding.runs[0]].dtype: finding.code
        for finding in report.findings
        if finding.code in CODES
    }


@pytest.mark.parametrize("is_healthy", [False, True])
def test_biases_for_distances_in_bfloat16_are_named(is_healthy: bool, tmp_path: Path) -> None:
    folder = with_positions_in_the_scores(is_healthy, tmp_path)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"seq_length": LENGTH})
    (folder / "config.json").write_text(text, encoding="utf-8")
    report = far(folder)
    run = run_of(report, "bfloat16", "eager")
    assert run.verdict is (Verdict.SAFE if is_healthy else Verdict.DEGRADED)
    assert codes(report).get("bfloat16") == (None if is_healthy else "PC721")
    if not is_healthy:
        finding = next(each for each in report.findings if each.code == "PC721")
        assert finding.op == "aten.baddbmm"
        assert (finding.source or "").startswith("modeling_bloom.py:")


def attending_by_position(name: str) -> PreTrainedModel:
    """A model whose attention prefers some distances: queries and keys are large."""
    model = tiny(name, num_layers=2)
    model.config.max_position_embeddings = 8192
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(1.5)
            layer.self_attn.k_proj.weight.mul_(1.5)
    return model


def in_its_dtype(
    self: Any, x: torch.Tensor, position_ids: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """A rotary embedding that computes angles in the dtype of the hidden states."""
    frequencies = self.inv_freq[None, None, :].to(x.dtype)
    angles = position_ids[:, :, None].to(x.dtype) * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("is_healthy", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_rotary_angles_in_16_bits_are_named(
    name: str, is_healthy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = attending_by_position(name)
    folder = save_checkpoint(model, tmp_path, tokenizer=True)
    rotary: Any = type(model.model.rotary_emb)
    if not is_healthy:
        monkeypatch.setattr(rotary, "forward", in_its_dtype)
    report = far(folder, attn_implementations=["sdpa"])
    found = codes(report)
    if is_healthy:
        assert found == {}
        return
    assert found["bfloat16"] == "PC722"
    finding = next(each for each in report.findings if each.code == "PC722")
    assert finding.op in {"aten.cos", "aten.sin"}
    assert f"modeling_{name}.py" in (finding.source or "")


@pytest.mark.parametrize("is_healthy", [False, True])
def test_a_value_that_grows_with_the_position_is_foretold(is_healthy: bool, tmp_path: Path) -> None:
    """Learned positions that grow, as a table trained at one length and stretched would."""
    config = transformers.GPT2Config(
        vocab_size=320, n_embd=64, n_layer=2, n_head=4, n_positions=1 << 16
    )
    model: Any = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        table = model.transformer.wpe.weight
        table.zero_()
        if not is_healthy:
            table[:, 5] = torch.arange(len(table)) * 4.0
    report = far(save_checkpoint(model, tmp_path, tokenizer=True), dtypes=["float16"])
    found = {each.code for each in report.findings} & CODES
    assert found == (set() if is_healthy else {"PC723"})
