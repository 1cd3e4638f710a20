"""What is told without running anything: never a run, and never a forward."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import precheck
from precheck.errors import UsageError
from precheck.judge import judge_again
from precheck.judge.gate import FailOn, gate
from precheck.records.report import Report
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


@pytest.fixture
def gemma3(tmp_path: Path) -> Path:
    return save_checkpoint(tiny("gemma3").bfloat16(), tmp_path / "gemma3", tokenizer=True)


def test_nothing_is_run(gemma3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = nn.Linear.forward

    def no_values(self: nn.Linear, data: torch.Tensor) -> torch.Tensor:
        assert data.device.type == "meta", "a forward with values"
        return real(self, data)

    monkeypatch.setattr(nn.Linear, "forward", no_values)
    report = precheck.scan(gemma3, static=True)
    assert report.is_static
    assert (report.runs, report.probes, report.headroom) == ((), (), ())
    assert report.complete
    assert "PC903" in codes(report)


def test_family_facts_are_told_with_their_source(gemma3: Path) -> None:
    report = precheck.scan(gemma3, static=True, gpus=("T4", "L4"))
    assert codes(report)["PC116"] == "warning"
    documented = next(finding for finding in report.findings if finding.code == "PC116")
    assert documented.confidence == "documented"
    assert "https://" in documented.message
    assert report.recommendation is not None
    assert (report.recommendation.dtype, report.recommendation.confidence) == (
        "float32",
        "predicted",
    )
    assert report.other_recommendations[0].dtype == "bfloat16"
    assert not gate(report, fail_on=FailOn.ERROR).holds  # a T4 only emulates bfloat16
    on_l4 = judge_again(report, gpus=("L4",))
    assert gate(on_l4, fail_on=FailOn.ERROR).holds
    assert not gate(on_l4, fail_on=FailOn.WARNING).holds


def test_a_dtype_that_is_known_to_break_fails_the_gate(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny("gemma3").half(), tmp_path / "half", tokenizer=False)
    report = precheck.scan(folder, static=True)
    assert codes(report)["PC116"] == "error"
    assert not gate(report, fail_on=FailOn.ERROR).holds


def test_stored_weights_are_audited(tmp_path: Path) -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[3] = 70_000.0
    report = precheck.scan(save_checkpoint(model, tmp_path / "m", tokenizer=False), static=True)
    assert "PC503" in codes(report)
    assert report.recommendation is not None
    assert any("exceed float16" in each.why for each in report.recommendation.rejected)


def test_clamps_and_modules_kept_in_float32_are_told(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny("t5"), tmp_path / "t5", tokenizer=False)
    report = precheck.scan(folder, static=True)
    assert {"PC507", "PC509"} <= codes(report).keys()
    assert all(line.startswith("modeling_t5.py:") for line in report.model.clamps)
    assert report.checkpoint.num_kept_in_float32 > 0
    healthy = precheck.scan(
        save_checkpoint(tiny("llama"), tmp_path / "llama", tokenizer=False), static=True
    )
    assert healthy.model.clamps == ()
    assert "PC509" not in codes(healthy)


def test_the_facts_are_those_of_a_scan(gemma3: Path) -> None:
    static = precheck.scan(gemma3, static=True, full=True)
    measured = precheck.scan(gemma3, quick=True)
    assert static.model == measured.model
    assert static.checkpoint == measured.checkpoint
    for ours, theirs in zip(
        static.other_recommendations, measured.other_recommendations, strict=True
    ):
        assert ours.fits == theirs.fits


def test_a_report_of_it_is_read_back(gemma3: Path) -> None:
    report = precheck.scan(gemma3, static=True, gpus=("T4",))
    assert Report.from_dict(report.to_dict()) == report


def test_prompts_and_live_modules_are_refused(gemma3: Path) -> None:
    with pytest.raises(UsageError, match="static runs nothing"):
        precheck.scan(gemma3, static=True, prompts=("hello",))
    with pytest.raises(UsageError, match="live module"):
        precheck.scan(tiny("llama"), static=True)


@pytest.mark.parametrize("context", [10**30, 2**63, 32])
def test_numbers_that_no_report_can_hold_do_not_reach_it(tmp_path: Path, context: int) -> None:
    folder = save_checkpoint(tiny("llama"), tmp_path / "llama", tokenizer=True)
    config = json.loads((folder / "config.json").read_text())
    deep: object = 10**40
    for _ in range(80):
        deep = {"deeper": [deep]}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "seed": 10**40,
        "deep": deep,
    }
    config["max_position_embeddings"] = context
    (folder / "config.json").write_text(json.dumps(config))
    report = precheck.scan(folder, static=True)
    read = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert read == report
    assert read.model.quantization is not None
    assert read.model.quantization["seed"] == "1" + 40 * "0"
    assert read.model.max_context == (32 if context == 32 else None)
