"""Library versions that are known to break a checkpoint: named where they concern it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from precheck.judge import judge
from precheck.judge.findings.libraries import KNOWN_FAULTS
from precheck.judge.gate import FailOn, gate
from precheck.records.finding import Confidence, Finding, Severity
from tests.hand_made import measurements


def found_with(libraries: dict[str, str], **model: Any) -> tuple[list[Finding], Any]:
    scan = measurements()
    scan = replace(
        scan,
        environment=replace(scan.environment, libraries=libraries),
        model=replace(scan.model, **model),
    )
    report = judge(scan, gpus=(), version="0")
    return [finding for finding in report.findings if finding.code == "PC508"], report


GPTQ = {"quant_method": "gptq", "num_linears_without_bias": 12}


@pytest.mark.parametrize("version", ["1.20.0", "1.17.1", "1.20.0.dev0"])
def test_old_optimum_is_an_error_for_gptq_without_biases(version: str) -> None:
    (finding,), report = found_with({"optimum": version}, quantization=GPTQ)
    assert finding.severity is Severity.ERROR
    assert finding.confidence is Confidence.DOCUMENTED
    assert (
        f"optimum {version} adds a randomly initialised bias to every GPTQ linear"
        in finding.message
    )
    assert "optimum/pull/1827" in finding.message
    assert not gate(report, fail_on=FailOn.ERROR).holds


@pytest.mark.parametrize(
    ("libraries", "quantization"),
    [
        ({"optimum": "1.20.1"}, GPTQ),
        ({"optimum": "2.0"}, GPTQ),
        ({"optimum": "1.20.0"}, None),
        ({"optimum": "1.20.0"}, {"quant_method": "gptq", "num_linears_without_bias": 0}),
        ({"optimum": "no version"}, GPTQ),
        ({}, GPTQ),
    ],
)
def test_others_are_silent(libraries: dict[str, str], quantization: dict[str, Any] | None) -> None:
    findings, _ = found_with(libraries, quantization=quantization)
    assert findings == []


@pytest.mark.parametrize(
    ("libraries", "model_type", "says"),
    [
        ({"torch": "2.1.0"}, "qwen2", "eager attention is used silently"),
        ({"torch": "2.4.1+cpu"}, "qwen2", "fully masked rows"),
        ({"transformers": "4.45.2"}, "qwen2_vl", "tokens see future tokens"),
        ({"transformers": "5.9.0"}, "gemma4_text", "vision pooler"),
    ],
)
def test_each_is_named_for_what_it_concerns(
    libraries: dict[str, str], model_type: str, says: str
) -> None:
    findings, _ = found_with(libraries, model_type=model_type)
    assert any(says in finding.message for finding in findings)
    assert all(finding.advice for finding in findings)


@pytest.mark.parametrize(
    ("libraries", "model_type"),
    [
        ({"torch": "2.13.0"}, "qwen2"),
        ({"transformers": "4.44.0"}, "qwen2_vl"),
        ({"transformers": "4.53.0"}, "qwen2_vl"),
        ({"transformers": "4.45.2"}, "qwen2"),
        ({"transformers": "5.10.1"}, "gemma4"),
    ],
)
def test_versions_outside_the_range_are_silent(libraries: dict[str, str], model_type: str) -> None:
    assert found_with(libraries, model_type=model_type)[0] == []


def test_every_fault_has_a_source() -> None:
    for fault in KNOWN_FAULTS:
        assert fault.source.startswith("https://github.com/")
        assert fault.says
        assert fault.advice
