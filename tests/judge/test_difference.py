"""Two reports compared: hand-made ones, and real scans with a planted difference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.judge import judge
from precheck.judge.comparison.difference import difference
from precheck.judge.thresholds import DIFFERENT_SIZE, DIFFERENT_SIZE_FLOAT32
from precheck.measure.models import shared
from precheck.records.precision import Arithmetic, Dtype
from tests import hand_made
from tests.processors import told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from precheck.records.outcomes.difference import Difference
    from precheck.records.report import Report


def judged(**changes: Any) -> Report:
    return judge(hand_made.measurements(**changes), version="0.1.0")


def with_layer(report: Report, index: int, factor: float, *, dtypes: set[Dtype]) -> Report:
    """The same with the values of runs in these dtypes scaled from a layer on."""
    runs = tuple(
        replace(
            run,
            layers=tuple(
                replace(layer, abs_max=layer.abs_max * factor)
                if layer.index >= index and layer.abs_max
                else layer
                for layer in run.layers
            ),
        )
        if run.dtype in dtypes
        else run
        for run in report.runs
    )
    return replace(report, runs=runs)


def test_a_report_does_not_differ_from_itself() -> None:
    compared = difference(judged(), judged())
    assert compared.is_empty
    assert compared.explanations == ()
    assert compared.environment == ()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(Dtype.FLOAT32, DIFFERENT_SIZE_FLOAT32.value), (Dtype.FLOAT16, DIFFERENT_SIZE.value)],
)
def test_rounding_is_no_difference_and_more_is(dtype: Dtype, tolerance: float) -> None:
    first = judged()
    assert difference(first, with_layer(first, 2, 1 + 0.9 * tolerance, dtypes={dtype})).is_empty
    compared = difference(first, with_layer(first, 2, 1 + 1.2 * tolerance, dtypes={dtype}))
    assert [change.what for change in compared.layers] == [
        f"{dtype} + {attn}, model.layers.2, and 3 further layers" for attn in ("sdpa", "eager")
    ]


def test_another_machine_with_the_same_figures_is_no_difference() -> None:
    first = judged()
    there = replace(first.environment, cpu="another", libraries={"torch": "2.14.0"})
    compared = difference(first, replace(first, environment=there))
    assert compared.is_empty
    assert {change.what for change in compared.environment} == {"CPU", "torch", "transformers"}


def test_float32_that_parts_is_blamed_on_the_modeling_code_if_that_is_what_differs() -> None:
    first = judged()
    parted = with_layer(first, 4, 2.0, dtypes=set(Dtype))
    libraries = {**first.environment.libraries, "transformers": "5.24.0"}
    second = replace(parted, environment=replace(first.environment, libraries=libraries))
    (explanation,) = difference(first, second).explanations
    assert "from model.layers.4 on" in explanation
    assert "transformers 5.23.0 and 5.24.0" in explanation


def test_float32_that_parts_without_any_cause_is_said_to() -> None:
    first = judged()
    (explanation,) = difference(first, with_layer(first, 4, 2.0, dtypes=set(Dtype))).explanations
    assert "nothing in the reports explains it" in explanation


def test_other_probes_come_before_other_code() -> None:
    first = judged()
    parted = with_layer(first, 0, 2.0, dtypes=set(Dtype))
    second = replace(parted, probes=first.probes[:2])
    assert difference(first, second).explanations == ("The probes differ, and so do the values.",)


def test_rounding_that_parts_is_blamed_on_what_computed_it() -> None:
    first = judged()
    runs = tuple(
        replace(run, arithmetic=Arithmetic.FLOAT32_ROUNDED) if run.dtype is Dtype.FLOAT16 else run
        for run in with_layer(first, 3, 1.5, dtypes={Dtype.FLOAT16}).runs
    )
    (explanation,) = difference(first, replace(first, runs=runs)).explanations
    assert explanation.startswith("Float32 agrees")
    assert (
        "arithmetic of float16 + sdpa: native in one, float32-rounded in the other" in explanation
    )


def test_different_models_are_not_compared_further() -> None:
    first = judged()
    model = replace(first.model, architecture="LlamaForCausalLM", num_decoder_layers=9)
    (explanation,) = difference(first, replace(first, model=model)).explanations
    assert explanation == (
        "The reports are about different models: Qwen2ForCausalLM with 6 layers, LlamaForCausalLM "
        "with 9 layers."
    )


def test_runs_that_only_one_has_are_named() -> None:
    first = judged()
    second = judged(runs=first.runs[:4])
    compared = difference(first, second)
    assert {change.what for change in compared.runs} == {"bfloat16 + sdpa", "bfloat16 + eager"}
    assert "The reports cover different configurations (--dtype, --attn)." in compared.explanations


def test_findings_that_came_and_went_are_told() -> None:
    compared = difference(judged(), judge(hand_made.qwen2_eager(), version="0.1.0"))
    assert [finding.code for finding in compared.new] == ["PC301", "PC201"]
    assert compared.gone == ()


# Real scans.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "model"
    path.mkdir()
    GALLERY["qwen2-eager"].build(path)
    return path


@pytest.fixture(scope="module")
def before(folder: Path) -> Report:
    return precheck.scan(folder, quick=True)


@pytest.fixture
def one_weight_changed(folder: Path) -> Iterator[Path]:
    """The bias that makes the scores large, a fiftieth of it."""
    (file,) = folder.glob("*.safetensors")
    kept = file.read_bytes()
    weights = load_file(file)
    weights["model.layers.3.self_attn.k_proj.bias"] *= 0.02
    save_file(weights, file, metadata={"format": "pt"})
    yield folder
    file.write_bytes(kept)


def test_a_planted_weight_is_named(before: Report, one_weight_changed: Path) -> None:
    compared: Difference = difference(before, precheck.scan(one_weight_changed, quick=True))
    assert not compared.is_empty
    assert compared.explanations[0].startswith(
        "The weights differ in model.layers.3, and float32 values diverge from "
        "model.layers.3.self_attn on."
    )
    assert (
        "the raw attention scores (QK^T before scaling) in model.layers.3.self_attn"
        in (compared.explanations[0])
    )
    verdicts = {
        change.what: (change.first.split(" in ")[0], change.second) for change in compared.runs
    }
    assert verdicts["float16 + eager"] == ("overflow", "safe")
    assert [finding.code for finding in compared.gone][:1] == ["PC301"]
    (weights,) = (change for change in compared.model if change.what == "weights")
    assert weights.second.endswith("different in model.layers.3")


def test_threads_and_arithmetic_make_no_difference(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evidence behind the thresholds: rounded products, another order of summation."""
    threads = torch.get_num_threads()
    with told("avx2"):  # one processor for both: advice follows from what it has
        with monkeypatch.context() as patched:
            patched.setattr(shared, "arithmetic_of", lambda *_: Arithmetic.NATIVE)
            native = precheck.scan(folder, quick=True)
        torch.set_num_threads(2 if threads == 1 else 1)
        try:
            compared = difference(native, precheck.scan(folder, quick=True))
        finally:
            torch.set_num_threads(threads)
    assert compared.is_empty
    assert any(change.what.startswith("arithmetic of float16") for change in compared.environment)


def test_a_scan_that_was_stopped_is_not_said_to_have_lost_findings() -> None:
    whole = judge(hand_made.qwen2_eager(), version="0.1.0")
    runs = tuple(
        replace(run, failure="interrupted", is_finished=False, reaches_output=False, overflows=())
        for run in hand_made.qwen2_eager().runs
    )
    scan = replace(
        hand_made.qwen2_eager(), runs=runs, complete=False, incomplete_reason="interrupted"
    )
    compared = difference(whole, judge(scan, version="0.1.0"))
    assert not compared.is_empty
    assert (compared.runs, compared.gone, compared.new, compared.layers) == ((), (), (), ())
    assert compared.explanations == (
        (
            "The second scan is incomplete (interrupted). "
            "What it did not reach differs for that reason only."
        ),
    )
