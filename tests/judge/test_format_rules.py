"""What is said of runs whose cache or weights are stored in a format."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge.report import judge
from precheck.records.finding import Severity, Verdict
from precheck.records.format_loss import Cause, FormatCulprits, FormatPart
from precheck.records.precision import Dtype
from precheck.records.sizes import KeyValueRange
from precheck.records.traces import Section
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Report
    from precheck.records.traces import RunTrace


def culprits(*, share: float, kl: float) -> FormatCulprits:
    part = FormatPart(
        part="model.layers.3 keys",
        layer=3,
        kl_divergence=share * kl,
        abs_max=480.0,
        clipped_share=0.0,
        rounding=0.6,
        head=1,
        channel=31,
        cause=Cause.BIAS,
        tensor="model.layers.3.self_attn.k_proj.bias",
    )
    return FormatCulprits(
        kl_divergence=kl,
        num_tokens=300,
        parts=(part,),
        keys_alone=kl,
        values_alone=0.0,
        left_out=("model.layers.3",),
        kl_divergence_left_out=0.01,
    )


def judged(run: RunTrace, **changes: object) -> Report:
    runs = (*hand_made.healthy_runs(), run)
    return judge(hand_made.measurements(runs=runs, **changes), version="0")


@pytest.mark.parametrize(
    ("kl", "share", "verdict", "codes"),
    [
        (0.09, 0.9, Verdict.SAFE, set()),
        (0.15, 0.4, Verdict.SAFE, {"PC605"}),
        (0.15, 0.6, Verdict.DEGRADED, {"PC602"}),
        (0.25, 0.1, Verdict.DEGRADED, {"PC602"}),
    ],
)
def test_a_loss_of_one_part_weighs_more_than_one_that_all_share(
    kl: float, share: float, verdict: Verdict, codes: set[str]
) -> None:
    run = hand_made.in_format(kl=kl, top1=0.8, kv_cache_dtype="int8")
    report = judged(replace(run, format_culprits=culprits(share=share, kl=kl)))
    assert report.runs[-1].verdict is verdict
    assert {one.code for one in report.findings if one.code.startswith("PC60")} == codes


def test_the_finding_names_part_reason_and_remedy() -> None:
    run = hand_made.in_format(kl=0.3, top1=0.7, kv_cache_dtype="int8")
    report = judged(replace(run, format_culprits=culprits(share=0.9, kl=0.3)))
    (finding,) = (one for one in report.findings if one.code == "PC602")
    assert finding.severity is Severity.ERROR
    assert (finding.layer, finding.module, finding.op) == (3, "model.layers.3", "kv:int8")
    assert (
        "Stored alone, model.layers.3 keys lose 0.27 nat: head 1, channel 31 reaches 480, the same"
        " in every token: model.layers.3.self_attn.k_proj.bias; rounding changes 60.0%"
    ) in finding.message
    assert finding.advice.startswith(
        "Leave model.layers.3 in the dtype (vLLM: --kv-cache-dtype-skip-layers 3): 0.01 nat"
    )


def test_a_format_is_not_blamed_for_a_dtype_that_is_broken() -> None:
    run = hand_made.in_format(kl=0.5, top1=0.5, kv_cache_dtype="int8")
    sound = hand_made.healthy_runs()
    broken = [
        replace(one, logits=hand_made.logits(kl=0.4)) if one.dtype is run.dtype else one
        for one in sound
    ]
    report = judge(hand_made.measurements(runs=(*broken, run)), version="0")
    codes = {one.code for one in report.findings}
    assert "PC201" in codes
    assert not codes & {"PC602", "PC603"}


@pytest.mark.parametrize(("measured", "is_silent"), [("fp8_e4m3", True), ("int8", False)])
def test_a_measured_cache_takes_the_place_of_the_predicted_one(
    measured: str, *, is_silent: bool
) -> None:
    clipped = KeyValueRange(
        layer=0,
        section=Section.DECODER,
        module="model.layers.0.self_attn",
        query=4.0,
        projected_key=9.0,
        key=9.0,
        value=1272.0,
        head_dim=64,
        is_key_normalised=False,
    )
    run = hand_made.in_format(kl=0.01, top1=0.98, kv_cache_dtype=measured)
    report = judged(run, key_values=(clipped,))
    assert ("PC601" not in {one.code for one in report.findings}) is is_silent


def test_a_format_is_never_what_is_advised() -> None:
    run = hand_made.in_format(kl=0.0, top1=1.0, kv_cache_dtype="fp8_e4m3")
    report = judged(run)
    assert report.recommendation is not None
    assert report.recommendation.dtype in set(Dtype)
    assert "kv:" not in report.recommendation.name
