"""Whether a checkpoint needs a fix, and whether what was written is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from precheck.cure.decision import cheaper_remedy
from precheck.cure.objections import objections
from precheck.judge import judge
from precheck.records.finding import Verdict
from precheck.records.outcomes.fix import ProofRun, Remedy
from precheck.records.precision import Dtype
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Report


def judged(**changes: Any) -> Report:
    return judge(hand_made.measurements(**changes), version="0.1.0")


def with_verdict(report: Report, verdict: Verdict, *, attn: str | None = None) -> Report:
    return replace(
        report,
        runs=tuple(
            replace(run, verdict=verdict)
            if run.dtype is Dtype.FLOAT16 and attn in {None, run.attn_implementation}
            else run
            for run in report.runs
        ),
    )


def test_what_is_safe_needs_nothing() -> None:
    decision = cheaper_remedy(judged(), Dtype.FLOAT16, "sdpa")
    assert decision is not None
    assert decision.remedy is Remedy.NOTHING


def test_little_headroom_is_worth_a_fix_and_an_overflow_too() -> None:
    for verdict in (Verdict.LOW_HEADROOM, Verdict.OVERFLOW, Verdict.DEGRADED):
        assert cheaper_remedy(with_verdict(judged(), verdict), Dtype.FLOAT16, "sdpa") is None


def test_one_attention_implementation_that_runs_is_enough() -> None:
    report = with_verdict(judged(), Verdict.OVERFLOW, attn="eager")
    decision = cheaper_remedy(report, Dtype.FLOAT16, "sdpa")
    assert decision is not None
    assert decision.remedy is Remedy.ATTENTION
    assert 'attn_implementation="sdpa"' in decision.sentence


def test_what_is_broken_in_float32_or_was_not_measured_is_left() -> None:
    report = judged()
    broken = tuple(
        replace(run, reference_nonfinite=True) if run.dtype is Dtype.FLOAT32 else run
        for run in report.runs
    )
    decision = cheaper_remedy(replace(report, runs=broken), Dtype.FLOAT16, "sdpa")
    assert decision is not None
    assert "broken in float32" in decision.sentence
    others = tuple(run for run in report.runs if run.dtype is not Dtype.FLOAT16)
    decision = cheaper_remedy(replace(report, runs=others), Dtype.FLOAT16, "sdpa")
    assert decision is not None
    assert "it was not measured" in decision.sentence


def run(dtype: Dtype, kl: float | None, verdict: Verdict = Verdict.SAFE) -> ProofRun:
    return ProofRun(
        checkpoint="fixed",
        dtype=dtype,
        attn_implementation="sdpa",
        verdict=verdict,
        kl_divergence_mean=kl,
    )


@pytest.mark.parametrize(
    ("runs", "is_exact", "says"),
    [
        ((run(Dtype.FLOAT16, 1e-5), run(Dtype.FLOAT32, 0.0)), True, None),
        ((run(Dtype.FLOAT16, 1e-5), run(Dtype.FLOAT32, 1e-6)), False, None),
        ((run(Dtype.FLOAT16, 1e-5), run(Dtype.FLOAT32, 1e-6)), True, "float32 differs"),
        ((run(Dtype.FLOAT16, 1e-5), run(Dtype.FLOAT32, 1e-3)), False, "float32 differs"),
        ((run(Dtype.FLOAT16, 0.05), run(Dtype.FLOAT32, 0.0)), True, "float16 differs"),
        ((run(Dtype.FLOAT16, None), run(Dtype.FLOAT32, 0.0)), True, "no finite logits"),
        ((run(Dtype.FLOAT16, 1e-5, Verdict.OVERFLOW),), True, "float16 is overflow"),
    ],
)
def test_a_fix_is_refused_for_its_figures(
    runs: tuple[ProofRun, ...], is_exact: bool, says: str | None
) -> None:
    against = objections(runs, dtype=Dtype.FLOAT16, is_exact=is_exact)
    assert says in against[0] if says else against == (), against
