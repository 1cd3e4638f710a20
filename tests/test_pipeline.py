"""The flow from a model to a report, with the measuring replaced."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import torch

import precheck
from precheck.errors import ScanInterrupted, UsageError
from precheck.pipeline import scan
from precheck.records.outcomes.coverage import Coverage
from precheck.records.precision import Dtype
from precheck.records.report import Environment, Measurements, ModelFacts, Report
from precheck.records.stored import CheckpointAudit
from precheck.records.traces import Probe, RunTrace

if TYPE_CHECKING:
    from collections.abc import Callable

    from precheck.measure.request import Request

MEASURED = Measurements(
    model=ModelFacts(
        id="Linear",
        revision=None,
        architecture="Linear",
        model_type="linear",
        decoder_layers="layers",
        num_decoder_layers=1,
        num_parameters=6,
        declared_dtype="float32",
        tensor_dtypes={"float32": 6},
        default_attn_implementation="sdpa",
    ),
    checkpoint=CheckpointAudit(),
    environment=Environment(
        python="3.11", platform="Linux", cpu="x", num_threads=1, memory_bytes=1, libraries={}
    ),
    probes=(Probe(name="text", kind="text", num_tokens=4),),
    coverage=Coverage(longest_probe_tokens=4, num_tokens=4),
    runs=(
        RunTrace(
            dtype=Dtype.FLOAT32,
            attn_implementation="sdpa",
            requested_attn_implementation="sdpa",
            device="cpu",
        ),
    ),
    headroom=(),
    seed=0,
)


def replace_measure(
    monkeypatch: pytest.MonkeyPatch, measure: Callable[..., Measurements]
) -> dict[str, Any]:
    asked: dict[str, Any] = {}

    def measured(subject: object, request: Request, *, observe: object) -> Measurements:
        asked.update(asdict(request), subject=subject, observe=observe)
        return measure()

    module = ModuleType("precheck.measure.measure")
    module.__dict__["measure"] = measured
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return asked


def test_a_live_module_is_measured_in_every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace_measure(monkeypatch, lambda: MEASURED)
    model = torch.nn.Linear(2, 3)
    report = scan(model)
    assert asked["subject"].module is model
    assert asked["dtypes"] == tuple(Dtype)
    assert asked["attn_implementations"] is None
    assert report.precheck_version == precheck.__version__
    assert [run.name for run in report.runs] == ["float32 + sdpa"]


def test_names_become_dtypes_and_tuples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace_measure(monkeypatch, lambda: MEASURED)
    scan(torch.nn.Linear(2, 3), dtypes=["bf16"], attn_implementations=["eager"], prompts=["a"])
    assert asked["dtypes"] == (Dtype.BFLOAT16,)
    assert asked["attn_implementations"] == ("eager",)
    assert asked["prompts"] == ("a",)


def test_one_value_is_as_good_as_a_list_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace_measure(monkeypatch, lambda: MEASURED)
    report = scan(
        torch.nn.Linear(2, 3),
        dtypes=torch.float16,
        attn_implementations="eager",
        prompts="a",
        gpus="T4",
        require="bf16+sdpa",
    )
    assert asked["dtypes"] == (Dtype.FLOAT16,)
    assert asked["attn_implementations"] == ("eager",)
    assert asked["prompts"] == ("a",)
    assert [required["dtype"] for required in asked["required"]] == [Dtype.BFLOAT16]
    assert [advice.target.name for advice in report.recommendations] == ["T4"]
    scan(torch.nn.Linear(2, 3), dtypes=[torch.bfloat16, "half"], require=["float16+eager"])
    assert asked["dtypes"] == (Dtype.BFLOAT16, Dtype.FLOAT16)
    assert [required["attn_implementation"] for required in asked["required"]] == ["eager"]


@pytest.mark.parametrize("model", [42, None, ["a"], object])
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(UsageError, match="not a model") as caught:
        scan(model)
    assert caught.value.__notes__ == ["hint: precheck.scan('Qwen/Qwen2-7B')"]


def test_an_unknown_gpu_is_refused_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace_measure(monkeypatch, lambda: MEASURED)
    with pytest.raises(UsageError, match="abacus"):
        scan(torch.nn.Linear(2, 3), gpus=["abacus"])
    assert asked == {}


def test_an_interrupted_scan_is_judged_as_far_as_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> Measurements:
        raise ScanInterrupted(MEASURED)

    replace_measure(monkeypatch, interrupted)
    with pytest.raises(ScanInterrupted) as caught:
        scan(torch.nn.Linear(2, 3))
    assert isinstance(caught.value.partial, Report)


@pytest.mark.parametrize("name", ["float8", "", "FLOAT16", "torch.float16"])
def test_other_dtype_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown dtype"):
        Dtype.named(name)


def test_a_report_is_shown_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_measure(monkeypatch, lambda: MEASURED)
    shown = repr(scan(torch.nn.Linear(2, 3)))
    assert shown == "<precheck report on Linear: float32 + sdpa: safe>"


def test_the_package_names_what_it_offers() -> None:
    assert dir(precheck) == sorted(precheck.__all__)
    assert precheck.scan is scan
    assert precheck.Report is Report
    with pytest.raises(AttributeError, match="no attribute 'scam'"):
        precheck.scam  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    program = "import precheck, sys; precheck.scan; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)  # noqa: S603  our own program
