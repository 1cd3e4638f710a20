"""What is proved for every prompt is told, gated, and never claimed where it is open."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.errors import UsageError
from precheck.judge import judge
from precheck.judge.gate import FailOn, gate, proof_of
from precheck.records.configuration import Configuration
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.every_prompt import ProofStatus, RunProof
from precheck.records.outcomes.intervals import intervals_of
from precheck.records.precision import Dtype
from precheck.records.report import Report
from precheck.render.formats.markdown_report import MarkdownReport
from precheck.render.parts.charts import charts
from precheck.render.parts.headline import headline
from precheck.render.parts.intervals import proved_line
from precheck.render.screens.brief import render_brief
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Measurements
    from precheck.records.traces import Headroom

FLOAT16 = Configuration.parse("float16+sdpa")
WHOLE = RunProof(num_operations=40, num_proved=40, assumptions=("text only",))
PARTLY = RunProof(num_operations=40, num_proved=38)


def bounded(
    row: Headroom, *, bound: float | None, status: ProofStatus = ProofStatus.PROVED
) -> Headroom:
    dtypes = list(row.headroom_bits)
    return replace(
        row,
        bound_abs_max={} if bound is None else dict.fromkeys(dtypes, bound),
        status=dict.fromkeys(dtypes, status),
    )


def with_bounds(
    measurements: Measurements, *, open_: Mechanism | None, bound: float | None = 1e6
) -> Report:
    """A healthy scan whose bounds prove everything, but one mechanism in one layer."""
    rows, is_left = [], open_ is not None
    for row in measurements.headroom:
        if is_left and row.mechanism is open_:
            is_left = False
            rows.append(bounded(row, bound=bound, status=ProofStatus.OPEN))
        else:
            rows.append(bounded(row, bound=row.abs_max * 2.0))
    assert not is_left
    proof = WHOLE if open_ is None else PARTLY
    runs = tuple(
        run if run.dtype.is_reference else replace(run, proof=proof) for run in measurements.runs
    )
    return judge(replace(measurements, headroom=tuple(rows), runs=runs), version="0.1.0")


HEALTHY = hand_made.measurements()
MECHANISM = Mechanism.GATED_PRODUCT
PROVED = with_bounds(HEALTHY, open_=None)
OPEN = with_bounds(HEALTHY, open_=MECHANISM)
CODES = frozenset({"PC701", "PC702"})


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings} & CODES


def test_safe_says_for_what() -> None:
    assert "no overflow for every prompt" in headline(PROVED).words
    assert "every prompt" not in headline(OPEN).words
    assert "every prompt" not in headline(judge(HEALTHY, version="0.1.0")).words
    for report, is_proved in ((PROVED, True), (OPEN, False)):
        outcome = gate(report, require=(FLOAT16,), fail_on=FailOn.ERROR)
        text = render_brief(report, outcome, engine="transformers", width=200, colour=False)
        assert ("no overflow for every prompt, accuracy up to" in text) is is_proved


def test_what_is_open_is_told_between_two_numbers() -> None:
    line = proved_line(OPEN)
    assert line is not None
    name = MECHANISM.replace("_", " ")
    assert f"open: {name}" in line
    assert "bits found, -3.9 proved" in line
    unbounded = proved_line(with_bounds(HEALTHY, open_=MECHANISM, bound=None))
    assert unbounded is not None
    assert "no bound" in unbounded
    assert proved_line(judge(HEALTHY, version="0.1.0")) is None
    assert "operations proved" in MarkdownReport().render(OPEN)


def test_findings_say_what_to_do_and_are_silent_otherwise() -> None:
    assert codes(judge(HEALTHY, version="0.1.0")) == set()
    assert codes(PROVED) == {"PC701"}
    assert codes(OPEN) == set()  # far from the limit: the bound is merely loose
    tight = tuple(
        replace(row, abs_max=30_000.0, headroom_bits=dict.fromkeys(row.headroom_bits, 1.1))
        if row.mechanism is MECHANISM
        else row
        for row in HEALTHY.headroom
    )
    near = with_bounds(replace(HEALTHY, headroom=tight), open_=MECHANISM)
    finding = next(each for each in near.findings if each.code == "PC702")
    assert "1.1 bits of headroom found, -3.9 proved" in finding.message


@pytest.mark.parametrize("mechanism", list(Mechanism))
def test_the_gate_asks_for_a_proof(mechanism: Mechanism) -> None:
    required = {"require": (FLOAT16,), "require_proof": (mechanism,), "fail_on": FailOn.ERROR}
    assert gate(PROVED, **required).holds  # type: ignore[arg-type]
    outcome = gate(OPEN, **required)  # type: ignore[arg-type]
    assert outcome.holds is (mechanism is not MECHANISM)
    if not outcome.holds:
        assert "not proved for every prompt" in outcome.line
    without = gate(judge(HEALTHY, version="0.1.0"), **required)  # type: ignore[arg-type]
    assert "scan it with --prove" in without.line
    assert not without.holds


def test_names_of_mechanisms_are_checked() -> None:
    assert proof_of("scores") is Mechanism.ATTENTION_SCORES
    with pytest.raises(UsageError, match="unknown mechanism: 'score'"):
        proof_of("score")


def test_a_refuted_place_is_not_proved() -> None:
    rows = tuple(bounded(row, bound=None, status=ProofStatus.REFUTED) for row in HEALTHY.headroom)
    for each in intervals_of(rows, FLOAT16):
        assert each.num_proved == 0
        assert each.open[0].proved is None
    assert intervals_of(HEALTHY.headroom, FLOAT16) == ()


def test_the_chart_has_both_curves_and_the_limit() -> None:
    measurements = hand_made.qwen2_eager()
    report = with_bounds(measurements, open_=Mechanism.ATTENTION_SCORES)
    drawn = [each for each in charts(report) if each.title.startswith("Found and proved")]
    assert drawn
    assert "float16 maximum" in drawn[0].svg
    assert "no input exceeds" in drawn[0].svg
    assert Report.from_dict(report.to_dict()) == report
    assert not report.runs[0].is_proved
    assert [run.dtype for run in PROVED.runs if run.is_proved] == [
        run.dtype for run in PROVED.runs if run.dtype is not Dtype.FLOAT32
    ]
