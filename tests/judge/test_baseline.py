from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.errors import BaselineError, ExitCode
from precheck.judge import judge
from precheck.judge.baseline import Accepted, accept, read_baseline
from precheck.judge.gate import FailOn, gate
from precheck.records.configuration import Configuration
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Report
    from precheck.records.traces import RunTrace

EAGER = (Configuration(dtype=Dtype.FLOAT16, attn_implementation="eager"),)
KNOWN = """
[[accept]]
code = "PC301"
module = "model.layers.*.self_attn"
op = "aten.bmm"
reason = "known"
"""


def report(*, layers: tuple[int, ...] = (3,)) -> Report:
    """Fp16 + eager overflows in the scores of these layers."""
    scan = hand_made.qwen2_eager()
    rows = tuple(
        hand_made.scores_overflow(module=f"model.layers.{layer}.self_attn", layer=layer)
        for layer in layers
    )
    broken = replace(scan.runs[3], overflows=rows)
    return judge(replace(scan, runs=(*scan.runs[:3], broken, *scan.runs[4:])), version="0.1.0")


def holds(report: Report, baseline: str, *, fail_on: FailOn = FailOn.ERROR) -> bool:
    accepted = accept(report, read_baseline(baseline))
    return gate(accepted, require=EAGER, fail_on=fail_on).holds


def test_a_known_finding_does_not_fail_the_gate() -> None:
    assert not holds(report(), "")
    assert holds(report(), KNOWN)


def test_one_format_that_costs_accuracy_is_accepted_and_another_is_not() -> None:
    scan = hand_made.formats()
    worse = hand_made.in_format(kl=0.3, top1=0.7, kv_cache_dtype="q4_0")
    judged = judge(replace(scan, runs=(*scan.runs, worse)), version="0.1.0")
    known = '[[accept]]\ncode = "PC602"\nop = "kv:int4"\nreason = "known"\n'
    accepted = accept(judged, read_baseline(known))
    for name, is_accepted in (("int4", True), ("q4_0", False)):
        required = (Configuration.parse(f"bfloat16+sdpa+kv:{name}"),)
        assert gate(accepted, require=required, fail_on=FailOn.ERROR).holds is is_accepted


def test_the_gate_says_that_the_baseline_accepts_what_breaks() -> None:
    accepted = accept(report(), read_baseline(KNOWN))
    assert gate(accepted, require=EAGER, fail_on=FailOn.ERROR).line == (
        "PASS: float16 + eager overflows, accepted by the baseline (PC301)"
    )


def test_what_is_accepted_elsewhere_is_named_with_its_reason() -> None:
    accepted = accept(report(), read_baseline(KNOWN))
    outcome = gate(accepted, fail_on=FailOn.ERROR)
    assert outcome.reasons == (
        "bfloat16 + sdpa is safe",
        "PC301 is accepted by the baseline: known",
    )


def test_its_figures_do_not_matter() -> None:
    louder = replace(
        report(), findings=tuple(replace(finding, message="x") for finding in report().findings)
    )
    assert holds(louder, KNOWN)


@pytest.mark.parametrize(
    ("known", "entry"),
    [
        ("another module", 'module = "model.layers.3.mlp"'),
        ("another layer", 'module = "model.layers.2.self_attn"'),
        ("another operation", 'op = "aten.mul"'),
    ],
)
def test_a_new_finding_fails_it(known: str, entry: str) -> None:
    assert not holds(report(), f'[[accept]]\ncode = "PC301"\nreason = "known"\n{entry}\n'), known


def test_one_more_layer_is_new_where_only_one_is_accepted() -> None:
    one = '[[accept]]\ncode = "PC301"\nmodule = "model.layers.3.self_attn"\nreason = "known"\n'
    assert holds(report(), one)
    assert not holds(report(layers=(3, 5)), one)
    assert holds(report(layers=(3, 5)), KNOWN)


def test_every_finding_that_explains_the_verdict_has_to_be_accepted() -> None:
    scan = hand_made.qwen2_eager()
    rows = (
        hand_made.scores_overflow(),
        hand_made.scores_overflow(
            module="model.layers.4.mlp", op="aten.mul", mechanism=Mechanism.GATED_PRODUCT
        ),
    )
    broken = replace(scan.runs[3], overflows=rows)
    both = judge(replace(scan, runs=(*scan.runs[:3], broken, *scan.runs[4:])), version="0.1.0")
    product = '[[accept]]\ncode = "PC101"\nreason = "known"\n'
    assert not holds(both, KNOWN)
    assert not holds(both, product)
    assert holds(both, KNOWN + product)


def test_another_runs_finding_does_not_excuse_this_one() -> None:
    degraded = '[[accept]]\ncode = "PC201"\nreason = "known"\n'
    assert not holds(report(), degraded)
    bfloat16 = (Configuration(dtype=Dtype.BFLOAT16, attn_implementation="eager"),)
    accepted = accept(report(), read_baseline(degraded))
    assert gate(accepted, require=bfloat16, fail_on=FailOn.ERROR).holds


def test_the_same_code_of_another_run_does_not_matter() -> None:
    def broken(attn: str, module: str) -> RunTrace:
        row = hand_made.scores_overflow(
            module=module, op="aten.mul", mechanism=Mechanism.GATED_PRODUCT
        )
        return hand_made.run(Dtype.FLOAT16, attn, overflows=(row,), reaches_output=True)

    runs = (
        hand_made.run(Dtype.FLOAT32, "eager"),
        broken("eager", "model.layers.3.mlp"),
        broken("sdpa", "model.layers.5.mlp"),
    )
    both = judge(hand_made.measurements(runs=runs), version="0.1.0")
    assert [finding.code for finding in both.findings if finding.code == "PC101"] == ["PC101"] * 2
    known = '[[accept]]\ncode = "PC101"\nmodule = "model.layers.3.mlp"\nreason = "known"\n'
    assert holds(both, known)
    sdpa = (Configuration(dtype=Dtype.FLOAT16, attn_implementation="sdpa"),)
    assert not gate(accept(both, read_baseline(known)), require=sdpa, fail_on=FailOn.ERROR).holds


@pytest.mark.parametrize("verdict", sorted(set(Verdict) - {Verdict.SAFE, Verdict.INCOMPLETE}))
def test_each_verdict_that_can_be_rejected_has_findings_that_explain_it(verdict: Verdict) -> None:
    scan = hand_made.measurements()
    safe = scan.runs[2]
    changed = {
        Verdict.FAILED: hand_made.run(
            Dtype.FLOAT16, "eager", failure="no room", layers=(), logits=None
        ),
        Verdict.OVERFLOW: hand_made.qwen2_eager().runs[3],
        Verdict.DEGRADED: replace(safe, logits=hand_made.logits(kl=0.5)),
        Verdict.ABSORBED: replace(safe, overflows=(hand_made.scores_overflow(absorbed=True),)),
        Verdict.LOW_HEADROOM: safe,
    }[verdict]
    headroom = hand_made.headroom_rows(scores=61.0)
    if verdict is Verdict.LOW_HEADROOM:
        headroom = tuple(
            replace(row, abs_max=50_000.0, headroom_bits={"float16": 0.4}) for row in headroom
        )
    judged = judge(replace(scan, runs=(scan.runs[0], changed), headroom=headroom), version="0.1.0")
    assert judged.runs[1].verdict is verdict
    required = (changed.configuration,)
    assert not gate(judged, require=required, fail_on=FailOn.WARNING).holds
    codes = {finding.code for finding in judged.findings if 1 in finding.runs}
    text = "".join(f'[[accept]]\ncode = "{code}"\nreason = "known"\n' for code in codes)
    accepted = accept(judged, read_baseline(text))
    assert gate(accepted, require=required, fail_on=FailOn.WARNING).holds


def test_a_broken_checkpoint_can_be_accepted_too() -> None:
    broken = judge(hand_made.broken_checkpoint(), version="0.1.0")
    assert not gate(broken, fail_on=FailOn.ERROR).holds
    errors = {finding.code for finding in broken.findings if finding.severity is Severity.ERROR}
    text = "".join(f'[[accept]]\ncode = "{code}"\nreason = "known"\n' for code in errors)
    assert gate(accept(broken, read_baseline(text)), fail_on=FailOn.ERROR).holds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[accept]\n", "not readable"),
        ("accept = 3\n", "not readable"),
        ('[[accept]]\ncode = "PC301"\n', "reason"),
        ('[[accept]]\ncode = "PC301"\nreason = " "\n', "has no reason"),
        ('[[accept]]\ncode = "PC999"\nreason = "x"\n', "unknown finding code 'PC999'"),
        ('[[accept]]\ncode = "PC301"\nreason = "x"\nmodul = "y"\n', "unknown field `modul`"),
        ('[[acept]]\ncode = "PC301"\nreason = "x"\n', "unknown field `acept`"),
    ],
)
def test_what_cannot_be_understood_is_refused(text: str, said: str) -> None:
    with pytest.raises(BaselineError, match=said) as caught:
        read_baseline(text)
    assert caught.value.exit_code is ExitCode.INCOMPLETE
    assert caught.value.hint


def test_an_empty_baseline_accepts_nothing() -> None:
    assert read_baseline("# nothing yet\n") == ()
    assert accept(report(), ()) == report()


def test_a_pattern_stands_for_every_layer() -> None:
    entry = Accepted(code="PC301", reason="known", module="model.layers.*.self_attn")
    (finding,) = (each for each in report(layers=(1, 2, 5)).findings if each.code == "PC301")
    assert entry.accepts(finding)
    assert finding.modules == tuple(f"model.layers.{layer}.self_attn" for layer in (1, 2, 5))
