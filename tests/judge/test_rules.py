from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.judge.findings.rules import RULES
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.mechanism import MECHANISMS, Mechanism
from precheck.records.precision import Dtype
from precheck.records.report import Device
from precheck.records.stored import CheckpointAudit, Renaming, TensorFault, Tie
from precheck.records.traces import LONG_TEXT_TOKENS, ODD_START, Probe
from precheck.served.findings.rules import SERVED_RULES
from tests import hand_made
from tests.judge import stories

if TYPE_CHECKING:
    from precheck.records.report import Measurements

ROOT = Path(__file__).parents[2]


MODULE = Renaming(
    old="module.", new="", is_prefix=True, stored=("module.a", "module.b"), parameters=("a", "b")
)


def findings_of(measurements: Measurements, **options: tuple[str, ...]) -> dict[str, Finding]:
    findings = judge(measurements, version="0.1.0", **options).findings
    assert len({finding.code for finding in findings}) == len(findings)
    return {finding.code: finding for finding in findings}


def audited(**faults: object) -> Measurements:
    healthy = hand_made.measurements()
    return replace(
        healthy,
        checkpoint=replace(healthy.checkpoint, **faults),  # type: ignore[arg-type]
    )


def with_overflow(**changes: object) -> Measurements:
    overflow = hand_made.scores_overflow(**changes)
    half = hand_made.run(
        Dtype.FLOAT16,
        "eager",
        reaches_output=True,
        overflows=(overflow,),
        kv_cache_dtype="fp8_e4m3" if overflow.mechanism is Mechanism.STORING else None,
    )
    return hand_made.measurements(runs=(*hand_made.healthy_runs()[:3], half))


def test_codes_are_used_once_and_every_mechanism_has_one() -> None:
    codes = [rule.code for rule in RULES]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"PC[1-79]\d\d", code) for code in codes)
    assert set(MECHANISMS) == set(Mechanism)


def test_every_code_has_a_section_with_its_title() -> None:
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (PC.*)$", page, flags=re.MULTILINE)
    rules = sorted(
        [(rule.code, rule.title) for rule in RULES]
        + [(rule.code, rule.title) for rule in SERVED_RULES]
    )
    assert headings == [f"{code}: {title}" for code, title in rules]


def test_a_healthy_scan_finds_nothing() -> None:
    assert not findings_of(hand_made.measurements())


def test_the_story_of_qwen2_is_told_by_two_findings() -> None:
    findings = findings_of(hand_made.qwen2_eager())
    assert list(findings) == ["PC301", "PC201"]
    scores, accuracy = findings.values()
    assert (scores.runs, scores.layer, scores.module, scores.source) == (
        (3,),
        3,
        "model.layers.3.self_attn",
        "modeling_qwen2.py:155",
    )
    for part in ("aten.bmm", "231,000", "65,504", "float16 + eager"):
        assert part in scores.message
    assert "output_attentions=True" in scores.advice
    assert "float16 + sdpa" in scores.advice
    for part in ("Temperature", "repetition penalty", "epsilon", "clipping", "before sampling"):
        assert part in scores.in_vain
    assert (accuracy.runs, accuracy.layer) == ((5,), 3)
    for part in ("0.51 nat", "9.02", "7.14", "1,024 apart"):
        assert part in accuracy.message


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_every_mechanism_is_found_and_cured(mechanism: Mechanism) -> None:
    findings = findings_of(with_overflow(mechanism=mechanism))
    finding = findings[MECHANISMS[mechanism].code]
    assert finding.severity is Severity.ERROR
    assert finding.confidence is Confidence.MEASURED
    assert mechanism.phrase in finding.message
    assert finding.advice
    assert MECHANISMS[mechanism].hint in finding.advice
    assert "remove_invalid_values" in finding.in_vain


def test_clamping_is_never_advised() -> None:
    for mechanism in Mechanism:
        finding = findings_of(with_overflow(mechanism=mechanism))[MECHANISMS[mechanism].code]
        assert "clamp" not in finding.advice.lower()


def test_one_finding_speaks_for_all_runs_and_modules() -> None:
    residual = [
        hand_made.scores_overflow(
            mechanism=Mechanism.RESIDUAL, module=f"model.layers.{layer}", layer=layer
        )
        for layer in (1, 2, 4)
    ]
    broken = [
        hand_made.run(
            Dtype.FLOAT16, attn_implementation, reaches_output=True, overflows=tuple(residual)
        )
        for attn_implementation in ("sdpa", "eager")
    ]
    runs = (*hand_made.healthy_runs()[:2], *broken)
    finding = findings_of(hand_made.measurements(runs=runs))["PC103"]
    assert finding.runs == (2, 3)
    assert finding.layer == 1
    assert "2 other modules" in finding.message
    assert "No attention implementation helps" in finding.in_vain


def test_an_absorbed_overflow_is_a_note_until_accuracy_is_lost() -> None:
    row = hand_made.scores_overflow(absorbed=True)
    half = hand_made.run(Dtype.FLOAT16, "eager", overflows=(row,))
    harmless = hand_made.measurements(runs=(*hand_made.healthy_runs()[:2], half))
    assert findings_of(harmless)["PC112"].severity is Severity.NOTE
    half = replace(half, logits=hand_made.logits(kl=0.4))
    harmful = hand_made.measurements(runs=(*hand_made.healthy_runs()[:2], half))
    assert findings_of(harmful)["PC112"].severity is Severity.WARNING


def test_an_output_that_is_not_finite_is_an_error_without_a_culprit_too() -> None:
    half = hand_made.run(Dtype.FLOAT16, "eager", reaches_output=True)
    runs = (*hand_made.healthy_runs()[:2], half)
    assert findings_of(hand_made.measurements(runs=runs))["PC111"].severity is Severity.ERROR


def test_a_model_broken_in_float32_has_no_other_range_finding() -> None:
    row = hand_made.scores_overflow()
    runs = tuple(
        replace(
            run,
            overflows=(row,),
            reaches_output=run.dtype is not Dtype.FLOAT32,
            reference_nonfinite=run.dtype is Dtype.FLOAT32,
        )
        for run in hand_made.healthy_runs()
    )
    scan = hand_made.measurements(runs=runs, headroom=hand_made.headroom_rows(scores=231_000.0))
    findings = findings_of(scan)
    assert list(findings) == ["PC113"]
    assert findings["PC113"].runs == (0, 1)
    assert "aten.bmm" in findings["PC113"].message


def test_low_headroom_warns_with_the_tightest_row() -> None:
    scan = hand_made.measurements(headroom=hand_made.headroom_rows(scores=40_000.0))
    finding = findings_of(scan)["PC114"]
    assert finding.severity is Severity.WARNING
    assert finding.runs == (3,)
    assert finding.layer == 3
    assert "40,000" in finding.message


@pytest.mark.parametrize(
    ("scores", "severity"), [(231_000.0, Severity.WARNING), (40_000.0, Severity.NOTE)]
)
def test_sdpa_alone_tells_what_eager_would_do(scores: float, severity: Severity) -> None:
    runs = tuple(run for run in hand_made.healthy_runs() if run.attn_implementation == "sdpa")
    scan = hand_made.measurements(runs=runs, headroom=hand_made.headroom_rows(scores=scores))
    finding = findings_of(scan)["PC303"]
    assert (finding.severity, finding.confidence) == (severity, Confidence.PREDICTED)
    assert finding.runs == (1,)
    assert "forces eager" in finding.advice


def test_a_replaced_attention_implementation_is_a_note() -> None:
    runs = [
        replace(run, requested_attn_implementation="flash_attention_2")
        for run in hand_made.healthy_runs()
        if run.attn_implementation == "sdpa"
    ]
    finding = findings_of(hand_made.measurements(runs=tuple(runs)))["PC304"]
    assert finding.severity is Severity.NOTE
    assert finding.runs == (0, 1, 2)


def test_float32_runs_that_disagree_are_a_warning() -> None:
    sdpa, eager, *others = hand_made.healthy_runs()
    eager = replace(eager, layers=hand_made.layers(errors=(0.05,) * hand_made.NUM_LAYERS))
    finding = findings_of(hand_made.measurements(runs=(sdpa, eager, *others)))["PC305"]
    assert finding.severity is Severity.WARNING
    assert finding.runs == (0, 1)


def test_rounding_between_float32_runs_is_no_finding() -> None:
    sdpa, eager, *others = hand_made.healthy_runs()
    eager = replace(eager, layers=hand_made.layers(errors=(1e-6,) * hand_made.NUM_LAYERS))
    assert not findings_of(hand_made.measurements(runs=(sdpa, eager, *others)))


def test_a_failed_run_is_a_warning_with_its_reason() -> None:
    failure = "flash_attn is not installed."
    runs = (
        *hand_made.healthy_runs(),
        hand_made.run(Dtype.FLOAT16, "flash_attention_2", failure=failure),
        hand_made.run(Dtype.BFLOAT16, "flash_attention_2", failure=failure),
    )
    finding = findings_of(hand_made.measurements(runs=runs))["PC402"]
    assert finding.severity is Severity.WARNING
    assert finding.runs == (6, 7)
    assert "flash_attn is not installed" in finding.message


def test_a_gpu_without_bfloat16_is_noted_when_asked_about() -> None:
    scan = hand_made.measurements()
    assert "PC401" not in findings_of(scan)
    assert "PC401" not in findings_of(scan, gpus=("A100",))
    assert findings_of(scan, gpus=("T4",))["PC401"].confidence is Confidence.DOCUMENTED
    t4 = Device(name="Tesla T4", kind="cuda", compute_capability="sm_75")
    environment = replace(scan.environment, devices=(t4, *scan.environment.devices))
    assert "PC401" in findings_of(replace(scan, environment=environment))


@pytest.mark.parametrize(
    ("faults", "code", "severity"),
    [
        ({"missing": ("a", "b", "c", "d", "e")}, "PC501", Severity.ERROR),
        ({"mismatched": ("lm_head.weight",)}, "PC502", Severity.ERROR),
        ({"nonfinite": (TensorFault(name="w", num_elements=2),)}, "PC504", Severity.ERROR),
        ({"unexpected": ("optimizer.step",)}, "PC505", Severity.NOTE),
        ({"unscaled": ("a.weight",)}, "PC511", Severity.ERROR),
        ({"unread_scales": ("a.weight_scale",)}, "PC511", Severity.ERROR),
        ({"all_zero": ("a.weight",)}, "PC512", Severity.WARNING),
        ({"all_zero": ("a.weight",), "zero_scales": ("a.weight",)}, "PC512", Severity.ERROR),
        ({"untied": (Tie(name="lm_head.weight", source="embed.weight"),)}, "PC513", Severity.ERROR),
        ({"renamings": (MODULE,)}, "PC514", Severity.ERROR),
        ({"kept_in_float32": ("wo",)}, "PC507", Severity.NOTE),
        (
            {"out_of_float16_range": (TensorFault(name="w", num_elements=3, abs_max=7e4),)},
            "PC503",
            Severity.NOTE,
        ),
        ({"num_float16_zero": 100_000}, "PC202", Severity.NOTE),
        ({"num_float16_subnormal": 100_000}, "PC202", Severity.NOTE),
    ],
)
def test_what_the_audit_saw_is_found(
    faults: dict[str, object], code: str, severity: Severity
) -> None:
    findings = findings_of(audited(**faults))
    of_engines = {"PC620"}  # one that converts weights
    assert set(findings) - of_engines == {code}
    assert findings[code].severity is severity


def test_missing_parameters_are_named_and_counted() -> None:
    finding = findings_of(audited(missing=("a", "b", "c", "d", "e")))["PC501"]
    assert "5 parameters (a, b, c and 2 more)" in finding.message
    assert "random" in finding.message


def test_weights_outside_float16_warn_when_float16_breaks() -> None:
    broken = with_overflow(mechanism=Mechanism.WEIGHTS)
    fault = TensorFault(name="w", num_elements=3, abs_max=70_000.0)
    scan = replace(broken, checkpoint=CheckpointAudit(out_of_float16_range=(fault,)))
    findings = findings_of(scan)
    assert findings["PC503"].severity is Severity.WARNING
    assert "PC108" in findings


def test_flushed_weights_warn_when_float16_is_degraded() -> None:
    half = hand_made.run(Dtype.FLOAT16, "sdpa", logits=hand_made.logits(kl=0.2))
    scan = replace(audited(num_float16_zero=100_000), runs=(*hand_made.healthy_runs()[:2], half))
    assert findings_of(scan)["PC202"].severity is Severity.WARNING


def test_a_config_that_names_another_dtype_is_noted() -> None:
    scan = hand_made.measurements()
    scan = replace(scan, model=replace(scan.model, declared_dtype="float32"))
    assert "bfloat16" in findings_of(scan)["PC506"].message


def test_an_incomplete_scan_says_so() -> None:
    scan = hand_made.measurements(complete=False, incomplete_reason="interrupted in layer 12")
    report = judge(scan, version="0.1.0")
    assert not report.complete
    assert report.incomplete_reason == "interrupted in layer 12"
    assert [finding.code for finding in report.findings] == ["PC901"]
    assert "interrupted in layer 12" in report.findings[0].message


def test_probes_that_were_not_run_are_listed() -> None:
    scan = hand_made.measurements()
    scan = replace(scan, coverage=replace(scan.coverage, probes_not_run=("chat: no template",)))
    assert "chat: no template" in findings_of(scan)["PC902"].message


def test_the_gravest_finding_comes_first() -> None:
    scan = replace(
        hand_made.qwen2_eager(),
        checkpoint=CheckpointAudit(missing=("a",), unexpected=("b",)),
        complete=False,
    )
    codes = [finding.code for finding in judge(scan, version="0.1.0").findings]
    assert codes == ["PC501", "PC301", "PC201", "PC901", "PC505"]


def test_a_mixture_whose_tokens_all_flipped_is_not_judged_for_precision() -> None:
    routed = tuple(
        replace(layer, routing_agreement=0.7, relative_error_same_routing=None)
        for layer in hand_made.layers(errors=(0.4,) * hand_made.NUM_LAYERS)
    )
    sdpa, eager, float16, *others = hand_made.healthy_runs()
    flipped = replace(float16, layers=routed, logits=hand_made.logits(kl=0.5))
    measured = hand_made.measurements(runs=(sdpa, eager, flipped, *others))
    assert set(findings_of(measured)) == {"PC203"}
    assert findings_of(measured)["PC203"].severity is Severity.NOTE
    assert "70.0%" in findings_of(measured)["PC203"].message


def with_odd_texts(verdict: float, **by_probe: float | None) -> Measurements:
    *others, last = hand_made.healthy_runs()
    logits = hand_made.logits(kl=0.025, kl_by_probe={"plain": 4e-4, **by_probe}, verdict=verdict)
    return hand_made.measurements(runs=(*others, replace(last, logits=logits)))


def test_accuracy_that_only_odd_inputs_lose_is_a_warning_that_names_them() -> None:
    finding = findings_of(with_odd_texts(4.4e-4, repeated=0.03, emoji=0.2, digits=0.009))["PC204"]
    assert finding.severity is Severity.WARNING
    assert finding.probes == ("emoji", "repeated")
    assert "4.4e-04" in finding.message
    assert "0.2 nat" in finding.message


@pytest.mark.parametrize("by_probe", [{"repeated": 0.009}, {"repeated": None}])
def test_texts_that_keep_their_accuracy_are_not_named(by_probe: dict[str, float | None]) -> None:
    assert "PC204" not in findings_of(with_odd_texts(4.4e-4, **by_probe))


def test_ordinary_inputs_that_lose_accuracy_are_the_run_itself() -> None:
    findings = findings_of(with_odd_texts(0.02, repeated=0.03))
    assert "PC201" in findings
    assert "PC204" not in findings


@pytest.mark.parametrize(
    ("errors", "layer"),
    [
        ((0.001, 0.001, 0.001, 0.3, 0.31, 0.32), 3),
        ((0.12, 0.14, 0.3, 0.5, 0.6, 0.7), 0),
        ((0.01, 0.02, 0.09, 0.11, 0.3, 0.9), 2),
        ((0.001, 0.002, 0.003, 0.004, 0.005, 0.05), 5),
    ],
)
def test_a_loss_starts_where_most_is_added_before_it_is_past_tolerance(
    errors: tuple[float, ...], layer: int
) -> None:
    *others, last = hand_made.healthy_runs()
    lossy = replace(last, layers=hand_made.layers(errors=errors), logits=hand_made.logits(kl=0.5))
    finding = findings_of(hand_made.measurements(runs=(*others, lossy)))["PC201"]
    assert finding.layer == layer


def test_what_is_judged_alone_or_for_range_is_no_odd_text() -> None:
    measured = with_odd_texts(4.4e-4, far=0.03)
    assert "PC204" in findings_of(measured)
    for elsewhere in (
        Probe(name="far", kind="text", num_tokens=LONG_TEXT_TOKENS, is_ordinary=True),
        Probe(name="far", kind="text", num_tokens=48, is_own=True),
        Probe(name="far", kind=ODD_START, num_tokens=2),
    ):
        probes = (*measured.probes, elsewhere)
        assert "PC204" not in findings_of(replace(measured, probes=probes))


def test_what_was_renamed_is_neither_missing_nor_unexpected() -> None:
    found = findings_of(
        audited(
            missing=("a", "b", "c"),
            unexpected=("extra", "module.a", "module.b"),
            renamings=(MODULE,),
        )
    )
    assert found["PC514"].modules == ("a", "b")
    assert found["PC501"].modules == ("c",)
    assert found["PC505"].modules == ("extra",)


@pytest.mark.parametrize("model_type", ["gemma4_unified", "qwen2_5_vl"])
def test_what_is_documented_of_images_is_told_until_an_image_was_run(model_type: str) -> None:
    scan = hand_made.measurements()
    scan = replace(scan, model=replace(scan.model, model_type=model_type))
    found = findings_of(scan)["PC116"]
    assert found.severity is Severity.WARNING
    assert "was not run in float16 with an image" in found.message
    image = replace(scan.probes[0], name="image_0", kind="image")
    assert "PC116" not in findings_of(replace(scan, probes=(*scan.probes, image)))
    text = replace(scan, model=replace(scan.model, model_type="gemma3_text"))
    assert "PC116" not in findings_of(text)


@pytest.mark.parametrize(
    ("device", "advice"),
    [
        ("L4", "Load it in bfloat16."),
        ("T4 32GB", "Use a quantised checkpoint"),
    ],
)
def test_what_is_too_large_is_loaded_in_a_dtype_that_the_device_has_and_that_holds(
    device: str, advice: str
) -> None:
    """Gemma 3, whose residual stream leaves float16, stored in float32."""
    scan = stories.gemma3(9.0)
    scan = replace(scan, model=replace(scan.model, declared_dtype="float32"))
    findings = judge(scan, gpus=(device,), version="0.1.0").findings
    found = next(each for each in findings if each.code == "PC404")
    assert found.advice.startswith(advice)
