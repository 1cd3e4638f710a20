"""Every planted fault is named: module, operation, source line, mechanism and layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from tests.measure.scans import fault_named, faulty_run, passes, plain_inputs, run_of, scan_of
from tests.oracle import first_fault, modules_with_nonfinite_output
from tests.planted import FAULTS, PlantedFault, fault_inputs, loaded, planted, planted_checkpoint
from tests.tiny_models import VOCAB_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.measure.probes.batch import Batch
    from precheck.records.report import Report
    from precheck.records.traces import Overflow

CAUSAL = tuple(fault for fault in FAULTS if fault.architecture not in {"t5", "bert"})
REPRESENTATIVES = tuple(
    {
        fault.mechanism: fault for fault in FAULTS if not fault.left_padded and not fault.absorbed
    }.values()
)
"""One fault of each mechanism."""
EAGER = {fault.name for fault in FAULTS if fault.attn_implementation == "eager"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Report, list[Batch]]]:
    """Reports and batches by the fault's name, scanned when first asked for."""

    class Scans(dict[str, tuple[Any, list[Any]]]):
        def __missing__(self, name: str) -> tuple[Any, list[Any]]:
            with passes() as passed:
                report = scan_of(fault_named(name), tmp_path_factory.mktemp(name))
            self[name] = report, [run.batch for run in passed]
            return self[name]

    return Scans()


def named(overflow: Overflow | None) -> dict[str, object]:
    fields = ("module", "op", "source", "mechanism", "layer", "absorbed")
    return {} if overflow is None else {field: getattr(overflow, field) for field in fields}


@pytest.mark.parametrize("fault", planted(FAULTS), ids=lambda fault: fault.name)
def test_names_the_planted_operation(
    fault: PlantedFault, scans: dict[str, tuple[Report, list[Batch]]]
) -> None:
    report, _ = scans[fault.name]
    run = faulty_run(report, fault)
    assert named(run.first_overflow) == {
        "module": fault.module,
        "op": fault.op,
        "source": fault.source,
        "mechanism": fault.mechanism,
        "layer": fault.layer,
        "absorbed": fault.absorbed,
    }
    assert run.verdict is (Verdict.ABSORBED if fault.absorbed else Verdict.OVERFLOW)
    assert run.first_overflow is not None
    assert fault.code in run.first_overflow.code
    assert run.first_overflow == next(
        overflow for overflow in run.overflows if overflow.absorbed == fault.absorbed
    )
    assert report.complete


@pytest.mark.parametrize("fault", planted(FAULTS), ids=lambda fault: fault.name)
def test_says_what_the_operation_needed_and_where(
    fault: PlantedFault, scans: dict[str, tuple[Report, list[Batch]]]
) -> None:
    report, _ = scans[fault.name]
    culprit = faulty_run(report, fault).first_overflow
    assert culprit is not None
    # Some families take the softmax in float32 in every dtype.
    assert culprit.limit == Dtype.FLOAT16.limits.max or culprit.op == "aten._softmax"
    assert culprit.num_elements > 0
    assert culprit.probes
    assert set(culprit.probes) <= {probe.name for probe in report.probes}
    if fault.left_padded:
        kinds = {probe.name: probe.kind for probe in report.probes}
        assert {kinds[name] for name in culprit.probes} == {"padded"}
    elif fault.mechanism is not Mechanism.WEIGHTS:
        assert culprit.reference_abs_max is not None
        assert culprit.reference_abs_max > culprit.limit


@pytest.mark.parametrize("fault", planted(FAULTS), ids=lambda fault: fault.name)
def test_float32_stays_clean(
    fault: PlantedFault, scans: dict[str, tuple[Report, list[Batch]]]
) -> None:
    report, _ = scans[fault.name]
    reference = run_of(report, "float32", fault.attn_implementation)
    assert reference.overflows == ()
    assert not reference.reference_nonfinite
    assert reference.verdict is Verdict.SAFE


@pytest.mark.parametrize("fault", planted(CAUSAL), ids=lambda fault: fault.name)
def test_says_what_a_user_would_see(
    fault: PlantedFault, scans: dict[str, tuple[Report, list[Batch]]]
) -> None:
    run = faulty_run(scans[fault.name][0], fault)
    if fault.absorbed:
        assert run.symptom is None
        return
    assert run.symptom is not None
    with pytest.raises(RuntimeError) as caught:
        torch.multinomial(torch.full((VOCAB_SIZE,), torch.nan), num_samples=1)
    message = str(caught.value).splitlines()[0]
    assert run.symptom.sampling == f"raises RuntimeError: {message}"
    if fault.mechanism is not Mechanism.LOGITS:  # only some of the scores are infinite there
        assert run.symptom.greedy.startswith("repeats token 0")
    if fault.left_padded:
        assert run.symptom.greedy.endswith(": !!!!!!!!")


@pytest.mark.parametrize(
    "fault",
    # the oracle runs the same operations, whatever they are, and eager attention is everywhere
    planted(REPRESENTATIVES, unpinned=EAGER),
    ids=lambda fault: fault.mechanism.value,
)
def test_agrees_with_the_brute_force_oracle_on_the_same_batch(
    fault: PlantedFault, scans: dict[str, tuple[Report, list[Batch]]], tmp_path: Path
) -> None:
    report, batches = scans[fault.name]
    reference, subject = loaded(fault, planted_checkpoint(fault, tmp_path))
    expected = first_fault(reference, subject, plain_inputs(batches[0]))
    culprit = faulty_run(report, fault).first_overflow
    assert expected is not None
    assert culprit is not None
    assert (culprit.module, culprit.op, culprit.source, culprit.absorbed) == (
        expected.module,
        expected.op,
        expected.source,
        expected.absorbed,
    )
    if fault.mechanism is not Mechanism.WEIGHTS:
        assert culprit.reference_abs_max == pytest.approx(expected.reference_abs_max, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "victim"),
    [
        ("qwen2-scores", "model.layers.1.self_attn.o_proj"),
        ("qwen2-product", "model.layers.1.mlp.down_proj"),
        ("gpt2-absorbed-pow", None),
    ],
)
def test_module_hooks_alone_name_another_module_or_none(
    name: str,
    victim: str | None,
    scans: dict[str, tuple[Report, list[Batch]]],
    tmp_path: Path,
) -> None:
    fault = fault_named(name)
    _, subject = loaded(fault, planted_checkpoint(fault, tmp_path))
    broken = modules_with_nonfinite_output(subject, fault_inputs(fault))
    blamed = broken[0] if broken else None
    culprit = faulty_run(scans[name][0], fault).first_overflow
    assert blamed == victim
    assert culprit is not None
    assert culprit.module == fault.module != blamed


def test_the_probe_that_overflows_is_named_and_no_other(tmp_path: Path) -> None:
    # Token and position embeddings fit one by one; their sum does not, for token 7 alone.
    fault = fault_named("gpt2-embedding-sum")
    model_of = fault.plant

    def only_token_7(model: Any) -> None:
        model_of(model)
        column = model.transformer.wte.weight[:, 0]
        column[torch.arange(len(column)) != 7] = 0.0

    report = scan_of(
        replace(fault, plant=only_token_7),
        tmp_path,
        prompts=[[3, 9, 4, 8], [3, 7, 4, 8], [5, 6, 9, 8], [7, 1]],
    )
    culprit = faulty_run(report, fault).first_overflow
    assert culprit is not None
    assert culprit.probes == ("prompt_2", "prompt_4")
    assert culprit.num_elements == 2


def test_the_probe_that_overflows_in_an_expert_is_named_and_no_other(tmp_path: Path) -> None:
    # Channel 5 is only there for token 7, and only the experts of layer 0 read it.
    fault = fault_named("mixtral-product")

    def only_token_7(model: Any) -> None:
        parameters = dict(model.named_parameters())
        parameters["model.embed_tokens.weight"][:, 5] = 0.0
        parameters["model.embed_tokens.weight"][7, 5] = 2.0
        parameters["model.layers.0.self_attn.o_proj.weight"][5] = 0.0
        parameters["model.layers.0.mlp.experts.gate_up_proj"][:, :, 5] = 1000.0

    report = scan_of(
        replace(fault, plant=only_token_7),
        tmp_path,
        prompts=[[3, 9, 4, 8], [3, 7, 4, 8], [10, 11, 12, 13]],
    )
    culprit = faulty_run(report, fault).first_overflow
    assert culprit is not None
    assert (culprit.layer, culprit.mechanism) == (0, Mechanism.GATED_PRODUCT)
    assert culprit.probes == ("prompt_2",)
