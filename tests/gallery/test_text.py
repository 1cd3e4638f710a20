"""The built-in decoders and T5: complete diagnoses, and silence on their healthy twins."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import T5ForConditionalGeneration

import precheck
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.traces import Section
from tests.gallery.diagnoses import (
    Diagnosis,
    Reports,
    built,
    check,
    check_silent,
    float16,
    scanned,
)
from tests.pinned import marks
from tests.tiny_models import PINNED

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report

WITHOUT_BOS = {"without_bos", "repeated", "vocabulary"}
"""Probes that do not begin with a special token."""

EXPECTED = {
    "qwen2-eager": Diagnosis(
        verdicts={
            "float16 + eager": Verdict.OVERFLOW,
            "bfloat16 + eager": Verdict.DEGRADED,
        },
        code="PC301",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="model.layers.3.self_attn",
        op="aten.bmm",
        layer=3,
        abs_max=(230_000, 231_000),
        greedy="!!!!",
        in_vain="Temperature, repetition penalty, an epsilon or clipping the logits",
        recommended="float16 + sdpa",
    ),
    "qwen3-headroom": Diagnosis(
        verdicts=float16(Verdict.LOW_HEADROOM),
        code="PC114",
        recommended="bfloat16 + sdpa",
    ),
    "gemma-prompt": Diagnosis(
        verdicts=float16(Verdict.OVERFLOW),
        code="PC101",
        mechanism=Mechanism.GATED_PRODUCT,
        module="model.layers.3.mlp",
        op="aten.mul",
        layer=3,
        abs_max=(75_000, 76_500),
        probes=frozenset({"digits", "self_attention", "code", "mathematics", "long", "padded_21"}),
        greedy="an empty answer (<pad> is a special token",
        in_vain="Other tools blame down_proj",
        recommended="bfloat16 + sdpa",
    ),
    "gemma3-residual": Diagnosis(
        verdicts=float16(Verdict.OVERFLOW),
        code="PC103",
        mechanism=Mechanism.RESIDUAL,
        module="model.layers.1",
        op="aten.add",
        layer=1,
        abs_max=(79_000, 81_000),
        greedy="an empty answer (<pad> is a special token",
        in_vain="No attention implementation helps",
        recommended="bfloat16 + sdpa",
    ),
    "llama-product": Diagnosis(
        verdicts=float16(Verdict.OVERFLOW),
        code="PC101",
        mechanism=Mechanism.GATED_PRODUCT,
        module="model.layers.4.mlp",
        op="aten.mul",
        layer=4,
        abs_max=(66_500, 67_500),
        greedy="repeats token 0",
        in_vain="Other tools blame down_proj",
        recommended="bfloat16 + sdpa",
    ),
    "left-padding": Diagnosis(
        verdicts={"float16 + eager": Verdict.OVERFLOW},
        code="PC302",
        mechanism=Mechanism.MASK,
        module="model.layers.3.self_attn",
        op="aten._softmax",
        layer=3,
        probes=frozenset({"padded_7", "padded_11", "padded_16", "padded_21"}),
        greedy="!!!!",
        in_vain="makes future tokens visible",
        recommended=None,  # bfloat16's KL is about SAME_KL_DIVERGENCE, the least that counts
    ),
    "t5-half": Diagnosis(verdicts={}, code="PC507", recommended="bfloat16 + sdpa"),
}

CASES = [pytest.param(name, marks=marks(name, {"t5-half": PINNED["t5"]})) for name in EXPECTED]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return Reports(tmp_path_factory.mktemp("gallery"))


def _expected(name: str, report: Report) -> Diagnosis:
    """Probes that begin with no special token trigger nothing that sits on one."""
    expected = EXPECTED[name]
    if name not in {"gemma3-residual", "llama-product"}:
        return expected
    every = frozenset(probe.name for probe in report.probes if not probe.is_for_range)
    return replace(expected, probes=every - WITHOUT_BOS)


@pytest.mark.parametrize("name", CASES)
def test_is_diagnosed_completely(name: str, reports: Reports) -> None:
    check(reports[name], _expected(name, reports[name]))


@pytest.mark.parametrize("name", CASES)
def test_the_healthy_twin_is_silent(name: str, tmp_path: Path) -> None:
    check_silent(scanned(built(name, tmp_path / "twin", is_planted=False)))


def test_headroom_is_named_with_its_layer(reports: Reports) -> None:
    found = [finding for finding in reports["qwen3-headroom"].findings if finding.code == "PC114"]
    streams = [each for each in found if "the residual stream" in each.message]
    assert [(stream.layer, stream.module) for stream in streams] == [(3, "model.layers.3")]
    assert "0.9 bits of headroom" in streams[0].message


def test_prompts_that_trigger_are_told_with_their_first_token(reports: Reports) -> None:
    first = reports["gemma-prompt"].runs[1].first_overflow
    assert first is not None
    # "<bos>the self-attention": the third token is the first that is marked
    assert first.first_positions["digits"] == 1
    assert 1 < first.first_positions["self_attention"] < 6
    assert set(first.first_positions) == set(first.probes)


def test_the_stream_stays_above_the_limit_from_its_layer_on(reports: Reports) -> None:
    layers = reports["gemma3-residual"].runs[0].layers
    above = [layer.index for layer in layers if layer.abs_max is not None and layer.abs_max > 65504]
    assert above == [1, 2, 3, 4, 5]


def test_half_after_loading_is_named_as_what_would_break(reports: Reports) -> None:
    found = next(finding for finding in reports["t5-half"].findings if finding.code == "PC507")
    assert found.severity is Severity.WARNING
    assert found.module == "encoder.block.3.layer.1.DenseReluDense.wo"
    assert ".half() on a loaded model casts these as well, and then it overflows" in found.advice


def test_a_live_t5_after_half_is_broken(tmp_path: Path) -> None:
    folder = built("t5-half", tmp_path / "t5")
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).half()
    report = precheck.scan(model, dtypes=["float16"])
    for run in report.runs:
        if run.dtype == "float16":
            assert run.verdict is Verdict.DEGRADED
            assert run.first_overflow is not None
            assert run.first_overflow.mechanism is Mechanism.MLP_OUTPUT
            assert run.first_overflow.module == "encoder.block.3.layer.1.DenseReluDense.wo"
            assert run.first_overflow.section is Section.ENCODER
            assert run.first_overflow.absorbed


def test_a_live_t5_cast_by_dtype_is_safe(tmp_path: Path) -> None:
    folder = built("t5-half", tmp_path / "t5")
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float16)
    report = precheck.scan(model, dtypes=["float16"])
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
