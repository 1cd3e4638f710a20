from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Arithmetic, Dtype
from precheck.records.report import Device
from precheck.records.stored import CheckpointAudit, TensorFault
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.advice import Recommendation
    from precheck.records.report import Measurements
    from precheck.records.traces import RunTrace


def recommended(measurements: Measurements, *gpus: str) -> Recommendation:
    recommendation = judge(measurements, gpus=gpus, version="0.1.0").recommendation
    assert recommendation is not None
    return recommendation


def choice(recommendation: Recommendation) -> tuple[str | None, str | None]:
    return recommendation.dtype, recommendation.attn_implementation


def why_not(recommendation: Recommendation, dtype: str, attn_implementation: str) -> str:
    return next(
        rejected.why
        for rejected in recommendation.rejected
        if (rejected.dtype, rejected.attn_implementation) == (dtype, attn_implementation)
    )


def broken_by(mechanism: Mechanism, run: RunTrace) -> RunTrace:
    return replace(
        run, reaches_output=True, overflows=(hand_made.scores_overflow(mechanism=mechanism),)
    )


def test_float16_is_chosen_where_it_fits_and_is_closer() -> None:
    recommendation = recommended(hand_made.qwen2_eager(), "A100")
    assert choice(recommendation) == ("float16", "sdpa")
    assert "overflows" in why_not(recommendation, "float16", "eager")
    assert "loses accuracy" in why_not(recommendation, "bfloat16", "eager")
    assert "further from float32" in why_not(recommendation, "bfloat16", "sdpa")
    assert "twice the memory" in why_not(recommendation, "float32", "sdpa")
    assert len(recommendation.rejected) == 5


def test_native_bfloat16_is_chosen_when_float16_has_little_to_spare() -> None:
    # 20,000 leaves 1.7 bits: safe, and less than what float16 has to have left.
    tight = hand_made.headroom_row(
        Mechanism.RESIDUAL, layer=3, abs_max=20_000.0, op="aten.add", line=289, module=""
    )
    scan = hand_made.measurements(headroom=(tight,))
    ampere = recommended(scan, "A100")
    assert choice(ampere) == ("bfloat16", "sdpa")
    assert why_not(ampere, "float16", "sdpa") == "works; 1.7 bits of headroom, bfloat16 has 114"
    assert choice(recommended(scan, "T4")) == ("float16", "sdpa")


def with_figures(
    *, float16: tuple[float | None, float | None], bfloat16: tuple[float | None, float | None]
) -> Measurements:
    """A healthy scan whose 16-bit runs have this mean KL and this error after the last layer."""
    figures = {Dtype.FLOAT16: float16, Dtype.BFLOAT16: bfloat16}
    runs = tuple(
        replace(
            run,
            logits=None
            if (pair := figures[run.dtype])[0] is None
            else hand_made.logits(kl=pair[0]),
            layers=hand_made.layers(errors=(0.0, 0.0, 0.0, 0.0, 0.0, pair[1])),
        )
        if run.dtype in figures
        else run
        for run in hand_made.healthy_runs()
    )
    return hand_made.measurements(runs=runs)


@pytest.mark.parametrize(
    ("float16", "bfloat16", "why"),
    [
        (
            (9e-5, 0.0),
            (1e-5, 0.0),
            "both are equally close to float32 (mean KL 9.0e-05 nat against 1.0e-05)",
        ),
        (
            (1e-6, 0.0),
            (9e-5, 0.0),
            "both are equally close to float32 (mean KL 1.0e-06 nat against 9.0e-05)",
        ),
        ((8e-4, 0.0), (2e-4, 0.0), "float16 is no closer to float32 (mean KL 8.0e-04 nat against"),
        ((None, 0.03), (None, 0.02), "no closer to float32 (relative error 3.0% against 2.0%)"),
        (
            (None, 0.0005),
            (None, 0.003),
            "both are equally close to float32 (relative error <0.1% against 0.3%)",
        ),
        ((None, None), (None, None), "it is not known which is closer to float32"),
    ],
)
def test_native_bfloat16_is_chosen_for_its_range_where_float16_is_no_closer(
    float16: tuple[float | None, float | None],
    bfloat16: tuple[float | None, float | None],
    why: str,
) -> None:
    recommendation = recommended(with_figures(float16=float16, bfloat16=bfloat16), "A100")
    assert choice(recommendation) == ("bfloat16", "sdpa")
    assert why in why_not(recommendation, "float16", "sdpa")
    assert "bfloat16 has more range" in why_not(recommendation, "float16", "sdpa")


def test_an_encoder_without_logits_gets_the_dtype_whose_last_layer_is_closer() -> None:
    scan = with_figures(float16=(None, 0.002), bfloat16=(None, 0.012))
    recommendation = recommended(scan, "A100")
    assert choice(recommendation) == ("float16", "sdpa")
    assert why_not(recommendation, "bfloat16", "sdpa") == (
        "works, but is further from float32 (relative error 1.2% against 0.2%)"
    )


def test_a_residual_overflow_leaves_bfloat16_or_float32() -> None:
    runs = tuple(
        broken_by(Mechanism.RESIDUAL, run) if run.dtype is Dtype.FLOAT16 else run
        for run in hand_made.healthy_runs()
    )
    scan = hand_made.measurements(runs=runs)
    assert choice(recommended(scan, "A100")) == ("bfloat16", "sdpa")
    turing = recommended(scan, "T4")
    assert choice(turing) == ("float32", "sdpa")
    assert "only emulated on sm_75" in why_not(turing, "bfloat16", "sdpa")
    assert any("has no bfloat16" in reason for reason in turing.reasons)


def test_little_headroom_is_accepted_when_nothing_of_the_size_is_safe_and_said() -> None:
    tight = hand_made.headroom_row(
        Mechanism.RESIDUAL, layer=3, abs_max=50_000.0, op="aten.add", line=289, module=""
    )
    scan = hand_made.measurements(headroom=(tight,))
    turing = recommended(scan, "T4")
    assert choice(turing) == ("float16", "sdpa")
    assert any("0.4 bits of headroom" in reason for reason in turing.reasons)
    ampere = recommended(scan, "A100")
    assert choice(ampere) == ("bfloat16", "sdpa")
    assert why_not(ampere, "float16", "sdpa") == "works; 0.4 bits of headroom, bfloat16 has 112"


def test_eager_is_chosen_only_where_nothing_else_was_measured() -> None:
    healthy = recommended(hand_made.measurements(), "A100")
    assert "materialises the attention matrix" in why_not(healthy, "float16", "eager")
    eager = tuple(run for run in hand_made.healthy_runs() if run.attn_implementation == "eager")
    scan = hand_made.measurements(runs=eager)
    assert choice(recommended(scan, "A100")) == ("float16", "eager")


def test_degraded_runs_are_never_chosen() -> None:
    runs = tuple(
        replace(run, logits=hand_made.logits(kl=0.5)) for run in hand_made.healthy_runs()[2:]
    )
    recommendation = recommended(hand_made.measurements(runs=runs), "A100")
    assert choice(recommendation) == (None, None)
    assert not recommendation.snippets
    assert "not recommended" in recommendation.reasons[0]
    assert len(recommendation.rejected) == 4


def test_flash_attention_is_not_for_a_gpu_that_cannot_run_it() -> None:
    flash = hand_made.run(Dtype.FLOAT16, "flash_attention_2", device="cuda:0")
    scan = hand_made.measurements(runs=(*hand_made.healthy_runs()[:1], flash))
    assert choice(recommended(scan, "A100")) == ("float16", "flash_attention_2")
    assert choice(recommended(scan, "T4")) == ("float32", "sdpa")


@pytest.mark.parametrize(
    ("audit", "reason"),
    [
        (CheckpointAudit(missing=("a.weight",)), "a.weight"),
        (CheckpointAudit(mismatched=("b.weight",)), "b.weight"),
        (CheckpointAudit(nonfinite=(TensorFault(name="c", num_elements=1),)), "not finite"),
    ],
)
def test_a_broken_checkpoint_gets_no_recommendation(audit: CheckpointAudit, reason: str) -> None:
    recommendation = recommended(hand_made.measurements(checkpoint=audit))
    assert choice(recommendation) == (None, None)
    assert reason in recommendation.reasons[0]


def test_a_model_broken_in_float32_gets_no_recommendation() -> None:
    runs = (
        hand_made.run(Dtype.FLOAT32, "sdpa", reference_nonfinite=True),
        hand_made.run(Dtype.FLOAT16, "sdpa"),
    )
    recommendation = recommended(hand_made.measurements(runs=runs))
    assert recommendation.dtype is None
    assert "not finite in float32" in recommendation.reasons[0]


def test_an_interrupted_scan_recommends_nothing() -> None:
    scan = hand_made.measurements(runs=(), headroom=(), complete=False)
    recommendation = recommended(scan)
    assert recommendation.dtype is None


def test_a_cpu_without_16_bit_arithmetic_is_told_that_it_is_slow() -> None:
    scan = hand_made.qwen2_eager()
    runs = tuple(
        run if run.dtype is Dtype.FLOAT32 else replace(run, arithmetic=Arithmetic.FLOAT32_ROUNDED)
        for run in scan.runs
    )
    assert "half the memory" in recommended(scan).reasons
    slow = recommended(replace(scan, runs=runs))
    assert choice(slow) == ("float16", "sdpa")
    assert any("this CPU has no float16 arithmetic" in reason for reason in slow.reasons)


def test_without_a_gpu_three_rows_are_advised() -> None:
    report = judge(hand_made.qwen2_eager(), version="0.1.0")
    assert report.recommendation is not None
    assert report.recommendation.target.name == "cpu"
    assert report.recommendation.confidence == "measured"
    assert [advice.target.compute_capability for advice in report.other_recommendations] == [
        "sm_75",
        "sm_80",
    ]
    for recommendation in report.other_recommendations:
        assert recommendation.confidence == "predicted"
        assert recommendation.reasons[-1] == (
            f"measured on cpu, predicted for {recommendation.target.compute_capability}"
        )


def test_gpus_are_advised_in_the_order_they_were_asked_for() -> None:
    report = judge(hand_made.qwen2_eager(), gpus=("T4", "sm_90"), version="0.1.0")
    assert report.recommendation is not None
    assert report.recommendation.target.name == "T4"
    assert [advice.target.name for advice in report.other_recommendations] == ["sm_90"]


def test_the_gpu_that_was_measured_is_advised_as_measured() -> None:
    scan = hand_made.measurements()
    gpu = Device(name="NVIDIA H200", kind="cuda", compute_capability="sm_90")
    runs = tuple(replace(run, device="cuda:0") for run in scan.runs)
    scan = replace(
        scan,
        runs=runs,
        environment=replace(scan.environment, devices=(gpu, *scan.environment.devices)),
    )
    report = judge(scan, version="0.1.0")
    assert report.recommendation is not None
    assert report.recommendation.target.name == "NVIDIA H200"
    assert report.recommendation.confidence == "measured"
    assert report.other_recommendations == ()
    here = {option.attn_implementation: option for option in report.recommendation.attention}
    assert here["sdpa"].confidence == "measured"
    assert recommended(scan, "A100").confidence == "predicted"
    there = {each.attn_implementation: each for each in recommended(scan, "A100").attention}
    assert there["sdpa"].confidence == "predicted"


def test_the_line_to_paste_is_python() -> None:
    scan = hand_made.measurements()
    scan = replace(scan, model=replace(scan.model, id='odd"name'))
    snippet = recommended(scan, "A100").snippets["transformers"]
    compile(snippet, "snippet", "exec")
    assert "dtype=torch.float16" in snippet
    assert 'attn_implementation="sdpa"' in snippet
    assert snippet.startswith("model = AutoModelForCausalLM.from_pretrained(")


def test_how_far_was_tested_is_said() -> None:
    assert "not tested beyond 512 tokens" in recommended(hand_made.measurements()).reasons
