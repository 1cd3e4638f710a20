"""The built-in GPTQ models: complete diagnoses, and silence on their healthy twins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from precheck.judge.gate import FailOn, gate
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from tests.gallery.diagnoses import Diagnosis, built, check, check_silent, scanned

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    folder = tmp_path_factory.mktemp("gallery")
    names = ("qwen2.5-gptq", "gptq-random-bias")
    return {name: scanned(built(name, folder / name)) for name in names}


def test_sums_in_float16_are_diagnosed_completely(reports: dict[str, Report]) -> None:
    report = reports["qwen2.5-gptq"]
    (broken,) = (run for run in report.runs if run.verdict is not Verdict.SAFE)
    assert broken.first_overflow is not None
    expected = Diagnosis(
        verdicts={"float16 + sdpa (float16 sums)": Verdict.OVERFLOW},
        code="PC109",
        mechanism=Mechanism.ACCUMULATION,
        module="model.layers.3.mlp.down_proj",
        op="aten.mm",
        layer=3,
        abs_max=(0.0, 100.0),
        probes=frozenset(broken.first_overflow.probes),
        greedy="!!!!",
        in_vain="Hooks on modules see a normal input and an infinite output",
        recommended="float16 + sdpa",
    )
    check(report, expected)
    assert broken.first_overflow.partial_sum is not None
    assert 170_000 < broken.first_overflow.partial_sum < 190_000
    assert set(broken.first_overflow.probes) >= {"chat", "digits", "long"}
    (found,) = (finding for finding in report.findings if finding.code == "PC109")
    assert found.severity is Severity.WARNING


def test_biases_that_nobody_stored_are_named_with_who_makes_them(
    reports: dict[str, Report],
) -> None:
    report = reports["gptq-random-bias"]
    missing = report.checkpoint.missing
    assert len(missing) == 5 * 7
    assert all(name.endswith("_proj.bias") for name in missing)
    (found,) = (finding for finding in report.findings if finding.code == "PC501")
    assert found.severity is Severity.ERROR
    assert missing[0] in found.message
    assert "optimum up to 1.20.0" in found.message
    assert report.recommendation is not None
    assert report.recommendation.dtype is None
    assert not gate(report, fail_on=FailOn.ERROR).holds


@pytest.mark.parametrize("name", ["qwen2.5-gptq", "gptq-random-bias"])
def test_the_healthy_twin_is_silent(name: str, tmp_path: Path) -> None:
    report = scanned(built(name, tmp_path / "twin", is_planted=False))
    check_silent(report)
    assert {finding.code for finding in report.findings} == {"PC115"}
