"""Which engines leave float16 inside, by the operands that were recorded (PC620, PC621)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.facts.float16_paths import Float16Path, table
from precheck.judge import judge
from precheck.judge.gate import FailOn, gate
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.sizes import Operand, OperandPeak
from precheck.records.stored import TensorFault
from precheck.records.traces import Section
from precheck.render.screens.brief import render_brief
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Measurements, Report

PATHS = table().path
MODULE = "model.layers.3.mlp.down_proj"


def measured(operand: Operand, value: float) -> Measurements:
    healthy = hand_made.measurements()
    if operand is Operand.WEIGHT:
        fault = TensorFault(name=MODULE, num_elements=1, abs_max=value)
        audit = replace(healthy.checkpoint, out_of_float16_range=(fault,))
        return replace(healthy, checkpoint=audit)
    small = OperandPeak(
        operand=operand, layer=2, section=Section.DECODER, module="another", value=value / 2
    )
    large = replace(small, layer=3, module=MODULE, value=value)
    return replace(healthy, operands=(small, large, replace(small, layer=4)))


DEVICES = ("L4", "M4 Pro", "MI300X")
"""Of each kind that a path of older versions is about."""


def judged(operand: Operand, value: float, *gpus: str) -> Report:
    return judge(measured(operand, value), gpus=gpus, version="1")


def of_paths(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.code in {"PC620", "PC621"}]


def said_of(path: Float16Path, report: Report) -> Finding | None:
    """What is said of a path in a report."""
    said = [
        finding
        for finding in of_paths(report)
        if finding.engine == path.engine and f"{path.where}: {path.function}" in finding.message
    ]
    assert len(said) <= 1
    return said[0] if said else None


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.id)
def test_every_path_is_reached_just_beyond_its_limit_and_not_before(path: Float16Path) -> None:
    at_limit = path.limit / path.factor
    devices = DEVICES if path.is_fixed else ()
    finding = said_of(path, judged(path.operand, at_limit * 1.001, *devices))
    assert finding is not None
    assert finding.confidence is Confidence.PREDICTED
    assert finding.code == ("PC621" if path.is_fixed else "PC620")
    assert finding.severity is (Severity.NOTE if path.is_fixed else Severity.WARNING)
    assert (finding.module, finding.layer) == (
        MODULE,
        None if path.operand is Operand.WEIGHT else 3,
    )
    assert path.versions in finding.message
    assert path.cure in finding.advice
    assert said_of(path, judged(path.operand, at_limit, *devices)) is None


def test_older_versions_are_told_of_where_a_device_is_named() -> None:
    unnamed = judged(Operand.NORM_MEAN_SQUARE, 1e6)
    assert of_paths(unnamed) == []
    (finding,) = of_paths(judged(Operand.NORM_MEAN_SQUARE, 1e6, "T4"))
    assert (finding.code, finding.engine) == ("PC621", "ONNX Runtime")
    assert of_paths(judged(Operand.NORM_MEAN_SQUARE, 1e6, "M4 Pro")) == []


@pytest.mark.parametrize("operand", Operand)
def test_an_operand_reaches_its_own_paths_alone(operand: Operand) -> None:
    reports = [judged(operand, 1e9), judged(operand, 1e9, *DEVICES)]
    reached = {path.id for path in PATHS if any(said_of(path, report) for report in reports)}
    assert reached == {path.id for path in PATHS if path.operand is operand}
    assert reached


@pytest.mark.parametrize(
    ("gpu", "reached", "not_reached"),
    [
        ("V100", {"llama_volta", "llama_vulkan_inputs"}, {"xyntetik_metal", "llama_cpu_inputs"}),
        ("T4", {"llama_vulkan_inputs"}, {"llama_volta", "xyntetik_metal", "llama_cpu_inputs"}),
        ("M4 Pro", {"xyntetik_metal"}, {"llama_volta", "llama_vulkan_inputs"}),
        ("MI300X", {"llama_vulkan_inputs"}, {"llama_volta", "xyntetik_metal"}),
    ],
)
def test_only_paths_on_the_gpu_that_is_asked_for(
    gpu: str, reached: set[str], not_reached: set[str]
) -> None:
    report = judged(Operand.LINEAR_INPUT, 160_000.0, gpu)
    said = {path.id for path in PATHS if said_of(path, report) is not None}
    assert reached <= said
    assert not said & not_reached


def test_an_engine_has_one_finding_with_all_its_operands() -> None:
    both = measured(Operand.LINEAR_INPUT, 160_000.0)
    sums = measured(Operand.SUM_OF_32, 400_000.0)
    report = judge(replace(both, operands=(*both.operands, *sums.operands)), version="1")
    (finding,) = (each for each in of_paths(report) if each.code == "PC620")
    assert finding.engine == "llama.cpp"
    assert f"{MODULE} reads up to 160,000" in finding.gist
    assert f"32 neighbours that {MODULE} reads add up to 400,000" in finding.message


def test_an_engine_that_has_no_code_for_the_model_is_left_out() -> None:
    large = measured(Operand.BRANCH, 1e6)
    assert of_paths(judge(large, version="1"))
    unknown = replace(large, model=replace(large.model, architecture="NobodysModel"))
    assert of_paths(judge(unknown, version="1")) == []


def test_nothing_is_predicted_from_a_float32_run_that_is_broken() -> None:
    large = measured(Operand.LINEAR_INPUT, 1e6)
    runs = tuple(replace(run, reference_nonfinite=run.dtype.is_reference) for run in large.runs)
    assert of_paths(judge(replace(large, runs=runs), version="1")) == []


def test_no_verdict_and_no_gate_depends_on_it() -> None:
    large, small = judged(Operand.LINEAR_INPUT, 1e6), judged(Operand.LINEAR_INPUT, 1.0)
    assert [run.verdict for run in large.runs] == [run.verdict for run in small.runs]
    for fail_on in FailOn:
        assert gate(large, fail_on=fail_on).holds == gate(small, fail_on=fail_on).holds


@pytest.mark.parametrize(
    ("engine", "is_told"), [("transformers", True), ("llama.cpp", True), ("vLLM", False)]
)
def test_the_short_output_tells_of_the_engine_that_is_asked_for(engine: str, is_told: bool) -> None:
    measurements = measured(Operand.LINEAR_INPUT, 160_000.0)
    report = judge(replace(measurements, runs=measurements.runs[:0]), version="1")
    brief = render_brief(
        report, gate(report, fail_on=FailOn.ERROR), engine=engine, width=100, colour=False
    )
    assert ("PC620: llama.cpp leaves float16 inside" in brief) is is_told


def test_a_report_of_an_earlier_version_says_nothing() -> None:
    assert of_paths(judge(hand_made.measurements(), version="1")) == []
