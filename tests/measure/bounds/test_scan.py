"""What a scan with ``--prove`` says of a model that breaks, streamed and from its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import precheck
from precheck.measure.bounds.pairs import Refinement
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.every_prompt import ProofStatus
from tests.tiny_models import tiny

if TYPE_CHECKING:
    import pytest


def test_a_scan_says_what_is_proved_refuted_and_assumed() -> None:
    report = precheck.scan(
        "demo:qwen2-eager", dtypes="float16", attn_implementations="eager", quick=True, prove=True
    )
    rows = [row for row in report.headroom if row.status]
    assert len(rows) == len(report.headroom)
    for row in rows:
        assert all(row.abs_max <= bound for bound in row.bound_abs_max.values())
        is_fault = (row.mechanism, row.layer) == (Mechanism.ATTENTION_SCORES, 3)
        expected = ProofStatus.REFUTED if is_fault else ProofStatus.PROVED
        assert row.status.get("float16", expected) == expected
        assert row.status.get("bfloat16", ProofStatus.PROVED) == ProofStatus.PROVED
    float16 = next(run for run in report.runs if run.dtype == "float16")
    proof = float16.proof
    assert proof is not None
    assert proof.failure is None
    assert proof.num_operations > 200
    assert not proof.holds_for_every_prompt
    assert proof.open_operations[0].module == "model.layers.3.self_attn"
    # what follows is NaN, so the weights of later layers are not read for this run
    assert {int(row.module.split(".")[2]) for row in proof.open_operations} <= {3, 4, 5}
    assert proof.assumptions


def test_with_time_bounds_are_smaller_and_none_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Refinement, "wanted", lambda _, limit: limit / 2**20)
    plain, refined = (
        precheck.scan(
            tiny("llama", num_layers=2),
            dtypes="float16",
            attn_implementations="eager",
            quick=True,
            prove=True,
            prove_minutes=minutes,
        )
        for minutes in (0.0, 0.2)
    )
    better = set()
    for before, after in zip(plain.headroom, refined.headroom, strict=True):
        for dtype, bound in after.bound_abs_max.items():
            assert before.abs_max <= bound * 1.001  # of the float32 run
            assert bound <= before.bound_abs_max[dtype]
            if bound < before.bound_abs_max[dtype]:
                better.add(before.mechanism)
    assert better >= {Mechanism.MLP_OUTPUT, Mechanism.RESIDUAL}


def test_without_it_nothing_is_bounded() -> None:
    report = precheck.scan("demo:qwen2-eager", dtypes="float16", quick=True)
    assert all(not row.status and not row.bound_abs_max for row in report.headroom)
    assert all(run.proof is None for run in report.runs)
