"""The built-in models that see and hear: complete diagnoses, and silence on their twins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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

if TYPE_CHECKING:
    from pathlib import Path


EXPECTED = {
    "qwen2-vl": Diagnosis(
        verdicts={
            "float16 + eager": Verdict.OVERFLOW,
            "bfloat16 + eager": Verdict.DEGRADED,
        },
        code="PC301",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="model.language_model.layers.3.self_attn",
        op="aten.bmm",
        layer=3,
        abs_max=(230_000, 231_000),
        greedy="!!!!",
        in_vain="Temperature",
        recommended="float16 + sdpa",
    ),
    "qwen2.5-vl-tower": Diagnosis(
        verdicts=float16(Verdict.OVERFLOW),
        code="PC103",
        mechanism=Mechanism.RESIDUAL,
        module="model.visual.blocks.3",
        op="aten.add",
        layer=3,
        section=Section.VISION,
        abs_max=(85_000, 95_000),
        probes=frozenset({"image_560x560"}),
        greedy="!!!!",
        in_vain="No attention implementation helps",
        recommended="bfloat16 + sdpa",
    ),
    "whisper-clamp": Diagnosis(
        verdicts=float16(Verdict.DEGRADED),
        code="PC112",
        mechanism=Mechanism.RESIDUAL,
        module="model.encoder.layers.3",
        op="aten.add",
        layer=3,
        section=Section.AUDIO,
        abs_max=(99_000, 101_000),
        in_vain="Clamping and remove_invalid_values hide the NaN",
        recommended="bfloat16 + sdpa",
    ),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    return Reports(tmp_path_factory.mktemp("gallery"))


@pytest.mark.parametrize("name", EXPECTED)
def test_is_diagnosed_completely(name: str, reports: Reports) -> None:
    check(reports[name], EXPECTED[name])


@pytest.mark.parametrize("name", EXPECTED)
def test_the_healthy_twin_is_silent(name: str, tmp_path: Path) -> None:
    check_silent(scanned(built(name, tmp_path / "twin", is_planted=False)))


def test_images_of_several_sizes_go_through_the_real_processor(reports: Reports) -> None:
    tokens = {
        probe.name: probe.num_tokens
        for probe in reports["qwen2-vl"].probes
        if probe.kind == "image"
    }
    # 28 x 28 pixels are a token, beside the same words
    words = tokens["image_112x112"] - 4 * 4
    assert tokens == {
        "image_112x112": words + 16,
        "image_448x224": words + 128,
        "image_560x560": words + 400,
        "image_blank": words + 64,
    }


def test_towers_and_projectors_have_rows_of_their_own(reports: Reports) -> None:
    rows = [(layer.section, layer.module) for layer in reports["qwen2-vl"].runs[0].layers]
    assert rows[:4] == [
        (Section.VISION, "model.visual.blocks.0"),
        (Section.VISION, "model.visual.blocks.1"),
        (Section.VISION, "model.visual.blocks.2"),
        (Section.PROJECTOR, "model.visual.merger"),
    ]
    assert {section for section, _ in rows[4:]} == {Section.DECODER}


def test_a_clean_tower_is_shown_to_be_clean(reports: Reports) -> None:
    report = reports["qwen2-vl"]
    tower = [
        layer
        for run in report.runs
        for layer in run.layers
        if layer.section in {Section.VISION, Section.PROJECTOR}
    ]
    assert len(tower) == 6 * 4
    assert all(layer.num_nan == layer.num_inf == 0 for layer in tower)
    assert {overflow.section for run in report.runs for overflow in run.overflows} == {
        Section.DECODER
    }
    assert any(row.section is Section.VISION for row in report.headroom)


def test_a_clamped_overflow_is_a_warning_because_the_answer_is_wrong(
    reports: Reports,
) -> None:
    report = reports["whisper-clamp"]
    (found,) = (finding for finding in report.findings if finding.code == "PC112")
    assert found.severity is Severity.WARNING
    broken = next(run for run in report.runs if run.name == "float16 + sdpa")
    assert broken.logits is not None
    assert broken.logits.num_nonfinite == 0
    assert broken.first_overflow is not None
    assert broken.first_overflow.absorbed
    assert {probe.kind for probe in report.probes} == {"sound"}
