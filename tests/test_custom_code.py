"""Models whose code comes with the checkpoint, written in the odd ways that people write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from torch._dynamo.utils import counters

import precheck
from precheck.errors import UnsupportedModelError
from precheck.records.finding import Severity, Verdict
from precheck.records.precision import Dtype
from tests.custom_models import CUSTOM, NUM_LAYERS, Custom, save_custom

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers copies the code of a checkpoint before it runs it."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )


def scanned(custom: Custom, folder: Path, *, planted: bool) -> Report:
    where = save_custom(custom, folder / "model", planted=planted)
    return precheck.scan(where, device="cpu", trust_remote_code=True)


# torch says so of a checkpoint whose input needs no gradient
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")


@pytest.mark.parametrize("name", list(CUSTOM))
def test_a_healthy_one_is_silent(name: str, tmp_path: Path) -> None:
    report = scanned(CUSTOM[name], tmp_path, planted=False)
    assert [run.verdict for run in report.runs] == [Verdict.SAFE] * 3
    assert [
        finding.message for finding in report.findings if finding.severity is not Severity.NOTE
    ] == []
    assert report.model.num_decoder_layers == NUM_LAYERS
    assert report.complete


@pytest.mark.parametrize("name", list(CUSTOM))
def test_a_planted_one_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    report = scanned(CUSTOM[name], tmp_path, planted=True)
    overflow = next(run for run in report.runs if run.dtype == "float16").first_overflow
    assert overflow is not None
    assert overflow.module.endswith("feed.down")
    assert overflow.source is not None
    assert overflow.source.startswith("modeling_mine.py:")
    assert "self.down(" in str(overflow.code)


@pytest.mark.parametrize("name", [each for each in CUSTOM if each.endswith("are compiled")])
def test_what_is_compiled_runs_uncompiled(name: str, tmp_path: Path) -> None:
    counters.clear()
    scanned(CUSTOM[name], tmp_path, planted=False)
    assert counters["frames"]["total"] == 0


@pytest.mark.parametrize("name", [each for each in CUSTOM if each.startswith("the answer")])
def test_scores_are_found_in_any_answer(name: str, tmp_path: Path) -> None:
    report = scanned(CUSTOM[name], tmp_path, planted=False)
    assert [run.logits is not None for run in report.runs] == [True] * 3


FAILING = Custom(block_before="assert hidden_states.dtype is not torch.float16, 'not in half'")


def test_a_forward_that_raises_in_one_dtype_fails_alone(tmp_path: Path) -> None:
    report = scanned(FAILING, tmp_path, planted=False)
    verdicts = {run.dtype: run.verdict for run in report.runs}
    assert verdicts == {
        Dtype.FLOAT32: Verdict.SAFE,
        Dtype.FLOAT16: Verdict.FAILED,
        Dtype.BFLOAT16: Verdict.SAFE,
    }
    assert "not in half" in str(next(each.reason for each in report.runs if each.reason))


def test_without_permission_no_line_of_it_runs(tmp_path: Path) -> None:
    folder = save_custom(Custom(), tmp_path / "model", planted=False)
    code = (folder / "modeling_mine.py").read_text(encoding="utf-8")
    marker = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n{code}", encoding="utf-8"
    )
    with pytest.raises(UnsupportedModelError) as refused:
        precheck.scan(folder, device="cpu")
    assert "--trust-remote-code" in str(refused.value.hint)
    assert not marker.exists()
    precheck.scan(folder, device="cpu", trust_remote_code=True)
    assert marker.exists()
