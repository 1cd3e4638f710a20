"""What cannot be followed through the layers is said, with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

import precheck
from precheck.measure.static import data_flow
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report

KEY_BIAS = "model.layers.0.self_attn.k_proj.bias"


@pytest.fixture
def biased(tmp_path: Path) -> Path:
    model = tiny("qwen2")
    with torch.no_grad():
        model.get_parameter(KEY_BIAS)[-2:] = 430.0
    return save_checkpoint(model, tmp_path, tokenizer=False)


def codes(report: Report) -> set[str]:
    return {each.code for each in report.findings}


def said(report: Report) -> str:
    return next(each.message for each in report.findings if each.code == "PC903")


def test_a_model_that_is_followed_to_the_end_says_nothing_of_it(biased: Path) -> None:
    report = precheck.scan(biased, static=True)
    assert report.coverage.not_followed is None
    assert "PC601" in codes(report)
    assert "not looked at" not in said(report)


@pytest.mark.parametrize("full", [False, True])
def test_a_forward_that_branches_on_numbers(
    full: bool, biased: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: Any = Qwen2MLP.forward

    def branches(self: Any, x: torch.Tensor) -> torch.Tensor:
        return plain(self, x) if float(x.sum()) > 0 else x

    monkeypatch.setattr(Qwen2MLP, "forward", branches)
    report = precheck.scan(biased, static=True, full=full)
    assert "Qwen2ForCausalLM cannot be traced" in str(report.coverage.not_followed)
    assert "PC601" not in codes(report)
    assert "What key biases do to an fp8 cache (PC601)" in said(report)
    assert "Qwen2ForCausalLM cannot be traced" in said(report)


def test_a_fault_in_a_rule_is_not_silent(biased: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(data_flow, "layer_bounds", faulty)
    report = precheck.scan(biased, static=True)
    assert report.coverage.not_followed == "ZeroDivisionError: division by zero"
    assert "PC601" in codes(report)  # what was followed before it is kept
    assert "or not all of them: ZeroDivisionError: division by zero." in said(report)
