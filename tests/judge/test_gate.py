from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.judge.gate import FailOn, gate
from precheck.records.configuration import Configuration
from precheck.records.finding import VERBS, Verdict
from precheck.records.outcomes.gate import Outcome
from precheck.records.precision import Dtype
from precheck.records.stored import CheckpointAudit, TensorFault
from tests import hand_made
from tests.judge import stories

if TYPE_CHECKING:
    from precheck.records.report import Measurements, Report


def judged(measurements: Measurements) -> Report:
    return judge(measurements, version="0.1.0")


def configuration(dtype: str, attn_implementation: str) -> Configuration:
    return Configuration(dtype=Dtype(dtype), attn_implementation=attn_implementation)


QWEN2 = judged(hand_made.qwen2_eager())


def test_the_declared_dtype_with_the_default_attention_is_gated() -> None:
    outcome = gate(QWEN2, fail_on=FailOn.ERROR)
    assert outcome.holds
    assert outcome.reasons == ("bfloat16 + sdpa is safe",)


@pytest.mark.parametrize(
    ("dtype", "attn_implementation", "holds"),
    [
        ("float16", "sdpa", True),
        ("float16", "eager", False),
        ("bfloat16", "eager", False),
        ("float32", "eager", True),
    ],
)
def test_required_configurations_are_gated_instead(
    dtype: str, attn_implementation: str, holds: bool
) -> None:
    required = (configuration(dtype, attn_implementation),)
    outcome = gate(QWEN2, require=required, fail_on=FailOn.ERROR)
    assert outcome.holds is holds
    assert f"{dtype} + {attn_implementation}" in outcome.reasons[0]


@pytest.mark.parametrize(
    ("gpu", "required", "holds", "said"),
    [
        ("H100", "q:fp8", True, "bfloat16 + sdpa + q:fp8 on H100 is safe"),
        ("A100", "q:fp8", True, "q:fp8 on sm_80: engines store only the weights in it"),
        ("T4", "q:fp8", False, "q:fp8 on sm_75: engines store only the weights in it"),
        (
            "MI300X",
            "kv:fp8_e4m3",
            False,
            "should not be used: kv:fp8_e4m3 on gfx942: fp8 is e4m3fnuz",
        ),
        ("A100", "kv:fp8_e4m3", True, "kv:fp8_e4m3 on sm_80: it is cast in software"),
        ("A100", "kv:int4", False, "loses accuracy"),
        ("A100", "kv:int8", True, "bfloat16 + sdpa + kv:int8 on A100 is safe"),
    ],
)
def test_the_gate_says_what_becomes_of_a_format_on_a_device(
    gpu: str, required: str, holds: bool, said: str
) -> None:
    report = judge(hand_made.formats(), gpus=(gpu,), version="0.1.0")
    wanted = Configuration.parse(f"bfloat16+sdpa+{required}")
    outcome = gate(report, require=(wanted,), fail_on=FailOn.ERROR)
    assert outcome.holds is holds
    assert said in outcome.reasons[0]


def test_one_broken_configuration_is_enough() -> None:
    required = (configuration("float16", "sdpa"), configuration("float16", "eager"))
    assert not gate(QWEN2, require=required, fail_on=FailOn.ERROR).holds


def test_what_was_not_measured_does_not_pass() -> None:
    required = (configuration("float16", "flash_attention_2"),)
    outcome = gate(QWEN2, require=required, fail_on=FailOn.ERROR)
    assert not outcome.holds
    assert outcome.reasons == ("float16 + flash_attention_2 was not measured",)


def test_a_requirement_matches_what_was_asked_for_or_what_was_used() -> None:
    replaced = replace(
        hand_made.run(Dtype.FLOAT16, "sdpa"), requested_attn_implementation="flash_attention_2"
    )
    report = judged(hand_made.measurements(runs=(*hand_made.healthy_runs()[:1], replaced)))
    for name in ("sdpa", "flash_attention_2"):
        assert gate(report, require=(configuration("float16", name),), fail_on=FailOn.ERROR).holds


@pytest.mark.parametrize("verdict", ["low_headroom", "absorbed"])
def test_what_may_break_is_rejected_only_on_warning(verdict: str) -> None:
    scan = hand_made.measurements(headroom=hand_made.headroom_rows(scores=40_000.0))
    if verdict == "absorbed":
        half = hand_made.run(
            Dtype.FLOAT16, "eager", overflows=(hand_made.scores_overflow(absorbed=True),)
        )
        scan = hand_made.measurements(runs=(*hand_made.healthy_runs()[:3], half))
    report = judged(scan)
    assert report.runs[3].verdict == verdict
    required = (configuration("float16", "eager"),)
    assert gate(report, require=required, fail_on=FailOn.ERROR).holds
    assert not gate(report, require=required, fail_on=FailOn.WARNING).holds


@pytest.mark.parametrize(
    "audit",
    [
        CheckpointAudit(missing=("a",)),
        CheckpointAudit(mismatched=("a",)),
        CheckpointAudit(nonfinite=(TensorFault(name="a", num_elements=1),)),
    ],
)
def test_a_broken_checkpoint_is_rejected_whatever_runs(audit: CheckpointAudit) -> None:
    report = judged(hand_made.measurements(checkpoint=audit))
    outcome = gate(report, fail_on=FailOn.ERROR)
    assert not outcome.holds
    assert gate(report, fail_on=FailOn.NEVER).holds


def test_weights_outside_float16_do_not_reject_bfloat16() -> None:
    fault = TensorFault(name="a", num_elements=1, abs_max=70_000.0)
    scan = replace(
        hand_made.qwen2_eager(), checkpoint=CheckpointAudit(out_of_float16_range=(fault,))
    )
    assert gate(judged(scan), fail_on=FailOn.ERROR).holds


def test_a_float32_run_that_is_not_finite_is_rejected() -> None:
    broken = hand_made.run(Dtype.FLOAT32, "eager", reference_nonfinite=True)
    report = judged(hand_made.measurements(runs=(*hand_made.healthy_runs(), broken)))
    outcome = gate(report, fail_on=FailOn.ERROR)
    assert not outcome.holds
    assert "float32 + eager is not finite" in outcome.reasons[0]


def test_without_a_declared_dtype_the_stored_one_is_gated() -> None:
    scan = hand_made.qwen2_eager()
    scan = replace(scan, model=replace(scan.model, declared_dtype=None))
    assert gate(judged(scan), fail_on=FailOn.ERROR).reasons == ("bfloat16 + sdpa is safe",)


def test_a_dtype_that_is_not_measured_asks_for_a_requirement() -> None:
    scan = hand_made.measurements()
    scan = replace(scan, model=replace(scan.model, declared_dtype="float8_e4m3fn"))
    outcome = gate(judged(scan), fail_on=FailOn.ERROR)
    assert not outcome.holds
    assert "--require" in outcome.reasons[0]
    required = (configuration("float16", "sdpa"),)
    assert gate(judged(scan), require=required, fail_on=FailOn.ERROR).holds


def test_without_a_known_default_every_run_of_the_dtype_is_gated() -> None:
    scan = hand_made.qwen2_eager()
    scan = replace(scan, model=replace(scan.model, default_attn_implementation=None))
    outcome = gate(judged(scan), fail_on=FailOn.ERROR)
    assert not outcome.holds
    assert "bfloat16 + eager loses accuracy" in outcome.reasons[0]


def test_never_rejects_nothing() -> None:
    required = (configuration("float16", "eager"),)
    assert gate(QWEN2, require=required, fail_on=FailOn.NEVER).holds


def test_accuracy_that_odd_inputs_lose_is_rejected_with_warnings_alone() -> None:
    measured = hand_made.measurements()
    logits = hand_made.logits(kl_by_probe={"plain": 1e-4, "repeated": 0.3}, verdict=1e-4)
    lossy = judged(
        replace(
            measured,
            runs=tuple(
                run if run.dtype.is_reference else replace(run, logits=logits)
                for run in measured.runs
            ),
        )
    )
    assert gate(lossy, fail_on=FailOn.ERROR).holds
    strict = gate(lossy, fail_on=FailOn.WARNING)
    assert not strict.holds
    assert "repeated" in strict.reasons[0]
    accepted = replace(
        lossy,
        findings=tuple(
            replace(finding, accepted="we never send such texts") for finding in lossy.findings
        ),
    )
    assert gate(accepted, fail_on=FailOn.WARNING).holds


IMPOSSIBLE = {
    "it failed": {"failure": "CUDA error"},
    "no layer was measured": {"layers": ()},
    "its output is not finite": {"reaches_output": True},
    "an overflow was not absorbed": {
        "first_overflow": hand_made.scores_overflow(),
        "overflows": (hand_made.scores_overflow(),),
    },
}


@pytest.mark.parametrize("why", IMPOSSIBLE)
@pytest.mark.parametrize("verdict", [Verdict.SAFE, Verdict.LOW_HEADROOM, Verdict.ABSORBED])
def test_a_saved_run_that_contradicts_itself_is_not_trusted(why: str, verdict: Verdict) -> None:
    runs = tuple(
        replace(run, verdict=verdict, **IMPOSSIBLE[why])  # type: ignore[arg-type]
        if run.name == "bfloat16 + sdpa"
        else run
        for run in QWEN2.runs
    )
    outcome = gate(replace(QWEN2, runs=runs), fail_on=FailOn.ERROR)
    assert not outcome.holds
    assert outcome.reasons == (f"bfloat16 + sdpa {VERBS[verdict]}, but {why}: scan again",)


def on(gpu: str, measurements: Measurements) -> Report:
    return judge(measurements, gpus=(gpu,), version="0.1.0")


def test_a_gpu_that_is_named_is_what_the_gate_is_about() -> None:
    t4 = gate(on("T4", hand_made.qwen2_eager()), fail_on=FailOn.ERROR)
    assert t4.outcome is Outcome.FAIL
    assert t4.line.startswith(
        "FAIL: bfloat16 + sdpa on T4 should not be used: bfloat16 is only emu"
    )
    a100 = gate(on("A100", hand_made.qwen2_eager()), fail_on=FailOn.ERROR)
    assert a100.line == "PASS: bfloat16 + sdpa on A100 is safe"


def test_every_gpu_that_is_named_has_to_pass() -> None:
    report = judge(hand_made.qwen2_eager(), gpus=("A100", "T4"), version="0.1.0")
    outcome = gate(report, fail_on=FailOn.ERROR)
    assert [(each.device, each.holds) for each in outcome.deployments] == [
        ("A100", True),
        ("T4", False),
    ]
    assert not outcome.holds
    assert gate(report, require=(configuration("float16", "sdpa"),), fail_on=FailOn.ERROR).holds


@pytest.mark.parametrize("gpu", ["T4", "V100", "A100", "H100", "RTX 3090", "sm_75", "M2 Max"])
def test_the_gate_and_the_advice_agree_on_a_gpu(gpu: str) -> None:
    for scan in (hand_made.qwen2_eager(), hand_made.measurements(), stories.gemma3()):
        report = on(gpu, scan)
        advised = report.recommendation
        assert advised is not None
        if advised.dtype is None:
            continue
        chosen = Configuration.of(advised)
        assert gate(report, require=(chosen,), fail_on=FailOn.ERROR).holds


def test_the_usual_gpus_that_nobody_named_are_not_gated() -> None:
    outcome = gate(QWEN2, fail_on=FailOn.ERROR)
    assert [each.device for each in outcome.deployments] == [None]


def test_a_dtype_alone_is_required_with_the_default_attention() -> None:
    outcome = gate(QWEN2, require=(Configuration.parse("float16"),), fail_on=FailOn.ERROR)
    assert outcome.line == "PASS: float16 + sdpa is safe"


@pytest.mark.parametrize(
    ("required", "line"),
    [
        ("float16+sdpa", "FAIL: float16 + sdpa overflows, documented: "),
        ("float16", "FAIL: float16 + "),
        ("bfloat16", "PASS: bfloat16 + "),
        ("float32+eager", "PASS: float32 + eager has no known problem (static check only, not mea"),
    ],
)
def test_without_runs_what_is_documented_of_the_required_one_counts(
    required: str, line: str
) -> None:
    gemma = judged(stories.static())
    assert gemma.is_static
    outcome = gate(gemma, require=(Configuration.parse(required),), fail_on=FailOn.ERROR)
    assert outcome.line.startswith(line)


def test_a_stored_weight_beyond_float16_fails_float16_without_a_run() -> None:
    beyond = CheckpointAudit(
        out_of_float16_range=(TensorFault(name="model.norm.weight", num_elements=1, abs_max=1e5),)
    )
    scan = replace(hand_made.measurements(), checkpoint=beyond, runs=(), is_static=True)
    required = (configuration("float16", "sdpa"),)
    outcome = gate(judged(scan), require=required, fail_on=FailOn.ERROR)
    assert "model.norm.weight exceeds float16's maximum" in outcome.line
    assert outcome.outcome is Outcome.FAIL


def stopped_early(*, layers: int) -> Report:
    scan = hand_made.measurements()
    runs = tuple(
        replace(
            run,
            failure="interrupted",
            is_finished=False,
            layers=run.layers[:layers],
            logits=None,
        )
        for run in scan.runs
    )
    return judged(replace(scan, runs=runs, complete=False, incomplete_reason="interrupted"))


@pytest.mark.parametrize("fail_on", list(FailOn))
def test_what_was_stopped_is_incomplete_and_not_failed(fail_on: FailOn) -> None:
    report = stopped_early(layers=2)
    assert {run.verdict for run in report.runs} == {Verdict.INCOMPLETE}
    assert "PC402" not in {finding.code for finding in report.findings}
    num_layers = report.model.num_decoder_layers
    assert gate(report, fail_on=fail_on).line == (
        f"INCOMPLETE: stopped after layer 2 of {num_layers}, no verdict (interrupted)"
    )


def test_what_was_stopped_before_the_first_layer_measured_nothing() -> None:
    line = gate(stopped_early(layers=0), fail_on=FailOn.ERROR).line
    assert line == "INCOMPLETE: nothing was measured, no verdict (interrupted)"


def test_an_overflow_that_was_seen_before_the_end_stays_one() -> None:
    scan = hand_made.qwen2_eager()
    report = judged(replace(scan, complete=False, incomplete_reason="interrupted"))
    assert Verdict.OVERFLOW in {run.verdict for run in report.runs}
    assert gate(report, fail_on=FailOn.ERROR).outcome is Outcome.INCOMPLETE
