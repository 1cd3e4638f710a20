"""A way in which runs vary is a field of ``Configuration``: all that handles runs carries it on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.errors import UsageError
from precheck.facts.devices import find
from precheck.judge.advice.ranking import gravest_runs, rank_of
from precheck.judge.comparison.side_by_side import missing_runs, pairs_of
from precheck.judge.evidence import Evidence
from precheck.judge.gate import FailOn, gate
from precheck.judge.prediction import predict
from precheck.judge.report import judge
from precheck.judge.verdict import reference_of
from precheck.records.advice import Rejected
from precheck.records.configuration import Configuration
from precheck.records.finding import Confidence, Verdict
from precheck.records.precision import Accumulation, Dtype
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Report, Run

FP8 = "fp8_e4m3"
FLOAT16 = Configuration(dtype=Dtype.FLOAT16, attn_implementation="sdpa")
FLOAT16_FP8 = replace(FLOAT16, kv_cache_dtype=FP8)


def scan() -> Report:
    """The healthy model, and its runs once more with a cache in fp8.

    There float16 overflows, and bfloat16 is nearer to float32.
    """
    report = judge(hand_made.measurements(), version="0")
    verdicts = {Dtype.FLOAT16: Verdict.OVERFLOW}
    with_format = (
        replace(
            run,
            kv_cache_dtype=FP8,
            verdict=verdicts.get(run.dtype, Verdict.SAFE),
            logits=hand_made.logits(kl=0.0) if run.dtype is Dtype.BFLOAT16 else run.logits,
        )
        for run in report.runs
    )
    return replace(report, runs=(*report.runs, *with_format))


def evidence_of(report: Report) -> Evidence:
    return Evidence(measurements=hand_made.measurements(), runs=report.runs)


def run_of(report: Report, configuration: Configuration) -> Run:
    return next(run for run in report.runs if run.configuration == configuration)


def test_a_run_is_named_by_everything_that_varies() -> None:
    assert run_of(scan(), FLOAT16_FP8).name == "float16 + sdpa + kv:fp8_e4m3"
    assert run_of(scan(), FLOAT16).name == "float16 + sdpa"
    sums = replace(hand_made.run(Dtype.FLOAT16, "sdpa"), accumulation=Accumulation.FLOAT16)
    assert sums.name == "float16 + sdpa (float16 sums)"


def test_only_what_varies_nothing_is_plain_and_only_plain_float32_is_a_reference() -> None:
    report = scan()
    assert [run.configuration.is_plain for run in report.runs] == [True] * 6 + [False] * 6
    references = [run.name for run in report.runs if run.configuration.is_reference]
    assert references == ["float32 + sdpa", "float32 + eager"]


def test_every_run_is_compared_with_plain_float32_of_the_same_attention() -> None:
    report = scan()
    for run in report.runs:
        reference = reference_of(run, runs=tuple(reversed(report.runs)))
        assert reference is not None
        assert reference.name == f"float32 + {run.attn_implementation}"


def test_the_gate_judges_the_runs_that_were_required() -> None:
    plain = gate(scan(), require=(FLOAT16,), fail_on=FailOn.ERROR)
    assert plain.reasons == ("float16 + sdpa is safe",)
    with_format = gate(scan(), require=(FLOAT16_FP8,), fail_on=FailOn.ERROR)
    assert with_format.reasons == ("float16 + sdpa + kv:fp8_e4m3 overflows",)
    other = gate(scan(), require=(replace(FLOAT16, kv_cache_dtype="int8"),), fail_on=FailOn.ERROR)
    assert other.reasons == ("float16 + sdpa + kv:int8 was not measured",)


def test_a_verdict_is_predicted_from_runs_that_vary_alike() -> None:
    evidence = evidence_of(scan())
    assert predict(evidence, FLOAT16).verdict is Verdict.SAFE
    assert predict(evidence, FLOAT16_FP8).verdict is Verdict.OVERFLOW
    flash = predict(evidence, FLOAT16_FP8.with_attention("flash_attention_2"))
    assert flash.verdict is Verdict.OVERFLOW
    assert flash.confidence is Confidence.PREDICTED


def test_reports_are_compared_by_everything_that_was_asked_for() -> None:
    report = scan()
    without = replace(report, runs=report.runs[:-1])
    pairs = pairs_of(report, without)
    assert [pair.name for pair in pairs] == [run.name for run in report.runs[:-1]]
    assert all(pair.first is pair.second for pair in pairs)
    (missing,) = missing_runs(report, without)
    assert missing.what == "bfloat16 + eager + kv:fp8_e4m3"


@pytest.mark.parametrize(("configuration", "dtype_order"), [(FLOAT16, 0), (FLOAT16_FP8, 2)])
def test_runs_are_ranked_among_those_that_vary_alike(
    configuration: Configuration, dtype_order: int
) -> None:
    evidence = evidence_of(scan())
    runs = gravest_runs(evidence)
    assert len(runs) == len(evidence.runs)
    rank = rank_of(evidence, runs[configuration], device=find("L4"), runs=runs)
    assert rank.name == str(configuration)
    assert rank.dtype_order == dtype_order


def test_records_take_the_fields_that_they_have() -> None:
    assert set(FLOAT16_FP8.as_fields(Rejected)) == {"dtype", "attn_implementation"}
    assert Rejected(**FLOAT16.as_fields(Rejected), why="").name == "float16 + sdpa"


@pytest.mark.parametrize(
    "text",
    ["bfloat16 + sdpa + kv:fp8_e4m3 + q:int4", "float16 + q:nvfp4", "float32 + eager + kv:int8"],
)
def test_a_configuration_is_read_as_it_is_written(text: str) -> None:
    assert str(Configuration.parse(text)) == text
    assert str(Configuration.parse(text.replace(" ", ""))) == text


def test_formats_may_come_in_any_order() -> None:
    written = Configuration.parse("fp16+q:int4+kv:int8+sdpa")
    assert written == Configuration.parse("float16+sdpa+kv:int8+q:int4")
    assert written.formats == ("kv:int8", "q:int4")
    assert written.without_formats == FLOAT16
    assert written.reference.formats == ()


@pytest.mark.parametrize(
    "text",
    ["", "+sdpa", "float16+", "float16+sdpa+eager", "float16+kv:", "float16+kv:a+kv:b", "a,b"],
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a configuration"):
        Configuration.parse(text)


def test_a_recommendation_is_named_as_its_configuration_is() -> None:
    recommendation = judge(hand_made.measurements(), version="0").recommendation
    assert recommendation is not None
    name = f"{recommendation.dtype} + {recommendation.attn_implementation}"
    assert recommendation.name == name
    nothing = replace(recommendation, dtype=None, attn_implementation=None)
    assert nothing.name == "nothing"
