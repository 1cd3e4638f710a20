"""Every detector earns its place: switched off, the answer is missing or wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.blame.examine import Examiner
from precheck.measure.lockstep.attribution import Attribution
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from tests.measure.mixtures import undecided
from tests.measure.scans import fault_named, faulty_run, run_of, scan_of
from tests.tiny_models import save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from torch import Tensor

    from precheck.measure.watch.segment import OpNode
    from precheck.records.report import Run
    from tests.planted import PlantedFault

Location = tuple[str, str, str]


def culprit(fault: PlantedFault, folder: Path) -> Location | None:
    overflow = faulty_run(scan_of(fault, folder), fault).first_overflow
    return None if overflow is None else (overflow.module, overflow.op, overflow.source)


def planted_place(fault: PlantedFault) -> Location:
    return fault.module, fault.op, fault.source


def test_the_comparison_of_elements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault = fault_named("llama-output")
    assert culprit(fault, tmp_path) == planted_place(fault)
    monkeypatch.setattr("precheck.measure.blame.examine.unexpected", lambda *_: None)
    assert culprit(fault, tmp_path) is None


def test_the_second_look_at_odd_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault = fault_named("llama-output")
    monkeypatch.setattr("precheck.measure.blame.second_look.needs_second_look", lambda *_: False)
    assert culprit(fault, tmp_path) != planted_place(fault)


def test_propagators_are_told_from_producers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fault = fault_named("qwen2-product")
    overflows = faulty_run(scan_of(fault, tmp_path), fault).overflows
    assert [overflow.module for overflow in overflows] == [fault.module]
    monkeypatch.setattr(Examiner, "taint", lambda *_: None)
    blamed = faulty_run(scan_of(fault, tmp_path), fault).overflows
    assert "model.layers.1.mlp.down_proj" in {overflow.module for overflow in blamed}


def test_the_rule_for_narrowing_casts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault = fault_named("gemma3-norm-cast")
    assert culprit(fault, tmp_path) == planted_place(fault)
    unexpected = Examiner._unexpected  # noqa: SLF001

    def blind(self: Examiner, node: OpNode, *args: Any, **kwargs: Any) -> Any:
        if node.is_cast:
            return None, None
        return unexpected(self, node, *args, **kwargs)

    monkeypatch.setattr(Examiner, "_unexpected", blind)
    assert culprit(fault, tmp_path) not in {None, planted_place(fault)}


def test_the_rule_for_masks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault = fault_named("qwen2-masked-row")
    assert culprit(fault, tmp_path) == planted_place(fault)
    monkeypatch.setattr("precheck.measure.blame.examine.MASK_SENTINEL", -torch.inf)
    monkeypatch.setattr("precheck.measure.blame.examine.mask_threshold", lambda *_: -torch.inf)
    module, op, _ = culprit(fault, tmp_path) or ("", "", "")
    assert (module, op) == (fault.module, "aten.add")  # the mask that every padded batch has


def test_the_rule_for_operations_without_a_match(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fault = fault_named("mixtral-product")

    def run() -> Run:
        model = undecided("mixtral", layers=(1,), tie=1e-3)
        with torch.no_grad():
            fault.plant(model)
        save_checkpoint(model, tmp_path, tokenizer=False)
        report = scan(tmp_path, dtypes=["float16"], attn_implementations=["eager"], quick=True)
        return run_of(report, "float16", "eager")

    found = run()
    agreement = found.layers[1].routing_agreement
    assert agreement is not None
    assert agreement < 1
    assert found.first_overflow is not None
    assert (found.first_overflow.module, found.first_overflow.op) == (fault.module, fault.op)
    assert found.first_overflow.mechanism is Mechanism.GATED_PRODUCT
    # rows of the reference belong to other tokens: they say nothing of what was needed
    assert found.first_overflow.reference_abs_max is None
    with monkeypatch.context() as patch:
        patch.setattr("precheck.measure.blame.second_look._routes_differ", lambda *_: False)
        mismatched = run().first_overflow
    assert mismatched is not None
    assert mismatched.reference_abs_max is not None
    with monkeypatch.context() as patch:
        patch.setattr(Examiner, "_breaks_finite", lambda *_: False)
        missed = run().first_overflow
    assert missed is None or missed.op != fault.op


def test_weights_that_left_the_dtype(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fault = fault_named("llama-weight")

    def mechanism() -> Mechanism | None:
        overflow = faulty_run(scan_of(fault, tmp_path), fault).first_overflow
        return None if overflow is None else overflow.mechanism

    assert mechanism() is Mechanism.WEIGHTS
    monkeypatch.setattr(
        "precheck.measure.models.streaming.parameter_reader.ParameterReader.is_faulty",
        lambda *_: False,
    )
    assert mechanism() is Mechanism.MLP_OUTPUT


def test_an_absorbed_overflow_is_not_what_spoils_the_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, last = fault_named("gpt2-absorbed-pow"), fault_named("gpt2-logits")

    def plant(model: Any) -> None:
        first.plant(model)
        last.plant(model)

    both = replace(last, attn_implementation="sdpa", plant=plant)
    run = faulty_run(scan_of(both, tmp_path), both)
    assert run.verdict is Verdict.OVERFLOW
    assert [(overflow.op, overflow.absorbed) for overflow in run.overflows] == [
        (first.op, True),
        (last.op, False),
    ]
    assert run.first_overflow is not None
    assert run.first_overflow.module == last.module
    judge_output = Attribution.judge_output

    def everything_reaches(
        self: Attribution, output: Tensor, reference: Tensor | None, *, has_logits: bool
    ) -> None:
        identities = frozenset(located.producer.identity for located in self.producers)
        self.examiner.taint(output, identities)
        judge_output(self, output, reference, has_logits=has_logits)

    monkeypatch.setattr(Attribution, "judge_output", everything_reaches)
    spoiled = faulty_run(scan_of(both, tmp_path), both).overflows
    assert not spoiled[0].absorbed
    assert spoiled[0].op == first.op


def test_tokens_sent_elsewhere_are_left_out_of_the_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = undecided("mixtral", layers=(2,), tie=1e-3)
    save_checkpoint(model, tmp_path, tokenizer=True)

    def verdict() -> Verdict:
        report = scan(tmp_path, dtypes=["bfloat16"], attn_implementations=["eager"])
        return run_of(report, "bfloat16", "eager").verdict

    assert verdict() is Verdict.SAFE
    monkeypatch.setattr(
        "precheck.measure.lockstep.figures.routing.experts",
        lambda segment: torch.zeros(segment.routes[-1][1].shape) if segment.routes else None,
    )
    assert verdict() is Verdict.DEGRADED
