from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.judge.verdict import verdict
from precheck.records.finding import Verdict
from precheck.records.loss import loss
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.traces import LayerTrace, RunTrace, Section
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Run

SAFE_RUNS = hand_made.healthy_runs()


def verdict_of(trace: RunTrace, *, scores: float = 61.0) -> Run:
    return verdict(trace, runs=(*SAFE_RUNS, trace), headroom=hand_made.headroom_rows(scores=scores))


def test_a_healthy_run_is_safe() -> None:
    judged = verdict_of(hand_made.run(Dtype.FLOAT16, "eager"))
    assert (judged.verdict, judged.reason, judged.first_overflow) == (Verdict.SAFE, None, None)


def test_a_failure_outweighs_everything() -> None:
    trace = hand_made.run(
        Dtype.FLOAT16, "eager", failure="flash_attn is not installed", reaches_output=True
    )
    judged = verdict_of(trace)
    assert judged.verdict is Verdict.FAILED
    assert judged.reason == "flash_attn is not installed"


def test_an_overflow_names_the_first_producer_that_was_not_absorbed() -> None:
    absorbed = hand_made.scores_overflow(module="model.layers.0.mlp", layer=0, absorbed=True)
    trace = hand_made.run(
        Dtype.FLOAT16,
        "eager",
        overflows=(absorbed, hand_made.scores_overflow()),
        reaches_output=True,
    )
    judged = verdict_of(trace)
    assert judged.verdict is Verdict.OVERFLOW
    assert judged.first_overflow == hand_made.scores_overflow()
    assert judged.reason is not None
    assert "231,000" in judged.reason


def test_an_overflow_without_a_producer_is_still_one() -> None:
    judged = verdict_of(hand_made.run(Dtype.FLOAT16, "eager", reaches_output=True))
    assert judged.verdict is Verdict.OVERFLOW
    assert judged.first_overflow is None


def test_an_absorbed_overflow_is_named() -> None:
    absorbed = hand_made.scores_overflow(absorbed=True)
    judged = verdict_of(hand_made.run(Dtype.FLOAT16, "eager", overflows=(absorbed,)))
    assert judged.verdict is Verdict.ABSORBED
    assert judged.first_overflow == absorbed


@pytest.mark.parametrize(
    ("kl", "error", "expected"),
    [
        (0.009, 0.09, Verdict.SAFE),
        (0.011, 0.0, Verdict.DEGRADED),
        (0.0, 0.11, Verdict.DEGRADED),
        (None, None, Verdict.SAFE),
    ],
)
def test_accuracy_is_judged_by_either_figure(
    kl: float | None, error: float | None, expected: Verdict
) -> None:
    trace = hand_made.run(
        Dtype.BFLOAT16,
        "sdpa",
        logits=hand_made.logits(kl=kl),
        layers=hand_made.layers(errors=(0.0,) * 5 + (error,)),
    )
    assert verdict_of(trace).verdict is expected


def test_lost_accuracy_outweighs_an_absorbed_overflow() -> None:
    trace = hand_made.run(
        Dtype.FLOAT16,
        "eager",
        overflows=(hand_made.scores_overflow(absorbed=True),),
        logits=hand_made.logits(kl=0.3),
    )
    judged = verdict_of(trace)
    assert judged.verdict is Verdict.DEGRADED
    assert judged.first_overflow is not None


def test_a_routing_flip_alone_is_not_a_loss() -> None:
    routed = tuple(
        replace(layer, routing_agreement=0.9, relative_error_same_routing=0.004)
        for layer in hand_made.layers(errors=(0.4,) * 6)
    )
    finals = replace(hand_made.logits(kl=0.8), kl_divergence_mean_same_routing=1e-4)
    trace = hand_made.run(Dtype.BFLOAT16, "sdpa", layers=routed, logits=finals)
    assert verdict_of(trace).verdict is Verdict.SAFE
    finals = replace(finals, kl_divergence_mean_same_routing=None)
    trace = hand_made.run(Dtype.BFLOAT16, "sdpa", layers=routed, logits=finals)
    assert loss(trace).kl_divergence is None
    assert verdict_of(trace).verdict is Verdict.SAFE


def test_the_last_layer_is_a_decoder_layer_where_there_is_one() -> None:
    vision = LayerTrace(
        index=0,
        section=Section.VISION,
        module="vision.0",
        abs_max=1.0,
        num_nan=0,
        num_inf=0,
        relative_error=0.9,
    )
    trace = hand_made.run(Dtype.BFLOAT16, "sdpa", layers=(*hand_made.layers(), vision))
    assert loss(trace).relative_error == 0.0


def test_scores_take_headroom_from_eager_runs_alone() -> None:
    eager = verdict_of(hand_made.run(Dtype.FLOAT16, "eager"), scores=40_000.0)
    sdpa = verdict_of(hand_made.run(Dtype.FLOAT16, "sdpa"), scores=40_000.0)
    assert eager.verdict is Verdict.LOW_HEADROOM
    assert sdpa.verdict is Verdict.SAFE
    assert eager.reason is not None
    assert "0.7 bits of headroom" in eager.reason
    assert Mechanism.ATTENTION_SCORES.phrase in eager.reason


def test_nothing_is_judged_against_a_broken_reference() -> None:
    broken = hand_made.run(Dtype.FLOAT32, "eager", reference_nonfinite=True)
    half = hand_made.run(Dtype.FLOAT16, "eager")
    fine = hand_made.run(Dtype.FLOAT16, "sdpa")
    runs = (broken, hand_made.run(Dtype.FLOAT32, "sdpa"), half, fine)
    report = judge(hand_made.measurements(runs=runs), version="0.1.0")
    assert [run.verdict for run in report.runs] == [
        Verdict.OVERFLOW,
        Verdict.SAFE,
        Verdict.FAILED,
        Verdict.SAFE,
    ]
    assert report.runs[2].reason == "nothing to compare with: float32 + eager is itself not finite"
