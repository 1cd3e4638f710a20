"""Batches of several prompts: models that refuse them, and faults that only padding shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from precheck.pipeline import scan
from precheck.records.finding import Severity, Verdict
from tests.measure.scans import run_of
from tests.shell import change_config
from tests.tiny_models import save_checkpoint, tiny_config

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report

CLASSIFIERS: dict[str, Any] = {
    "qwen2": transformers.Qwen2ForSequenceClassification,
    "gpt2": transformers.GPT2ForSequenceClassification,
    "opt": transformers.OPTForSequenceClassification,
}


def classifier(name: str, folder: Path, *, gain: float = 1) -> Path:
    """A classifier on a decoder without a padding token; ``gain`` makes its values large."""
    config = tiny_config(name)
    config.num_labels = 3
    torch.manual_seed(0)
    model = CLASSIFIERS[name](config)
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith(("up_proj.weight", "gate_proj.weight")):
                parameter.mul_(gain)
    save_checkpoint(model, folder, tokenizer=True)
    change_config(folder, pad_token_id=None)
    return folder


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


@pytest.mark.parametrize(
    ("name", "resident"), [*((name, False) for name in CLASSIFIERS), ("qwen2", True)]
)
def test_a_model_that_refuses_batches_is_run_row_by_row(
    name: str, resident: bool, tmp_path: Path
) -> None:
    folder = classifier(name, tmp_path)
    model = CLASSIFIERS[name].from_pretrained(folder)
    with pytest.raises(ValueError, match="batch sizes > 1"):
        model(torch.ones(2, 4, dtype=torch.long))
    options: dict[str, Any] = {"dtypes": ["bfloat16"], "attn_implementations": ["sdpa"]}
    options |= {"prompts": ["Yes.", "What is attention?"], "resident": resident}
    report = scan(folder, **options)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert "batch sizes > 1" in str(report.coverage.row_by_row)
    (finding,) = (finding for finding in report.findings if finding.code == "PC904")
    assert finding.severity is Severity.WARNING
    assert "pad_token_id" in finding.message
    # with a padding token the same rows give the same, and nothing is said
    change_config(folder, pad_token_id=0)
    whole = scan(folder, **options)
    assert "PC904" not in codes(whole)
    assert whole.coverage.row_by_row is None
    assert whole.probes == report.probes
    assert [len(run.layers) for run in whole.runs] == [len(run.layers) for run in report.runs]


def test_an_overflow_is_found_in_a_model_that_refuses_batches(tmp_path: Path) -> None:
    report = scan(classifier("qwen2", tmp_path, gain=1e3), dtypes=["float16"])
    assert run_of(report, "float16", "sdpa").verdict is Verdict.OVERFLOW


def test_a_model_that_fails_with_every_row_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("never")

    folder = classifier("qwen2", tmp_path)
    monkeypatch.setattr(transformers.Qwen2ForSequenceClassification, "forward", refuse)
    report = scan(folder, dtypes=["bfloat16"], quick=True)
    assert {run.verdict for run in report.runs} == {Verdict.FAILED}
    assert report.coverage.row_by_row is None


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param(["The sea was calm."], id="one"),
        pytest.param([[5, 6, 7, 8], [9, 10, 11, 12]], id="of-one-length"),
        pytest.param(["Yes.", "What is attention, and why is it all you need?"], id="two"),
    ],
)
def test_a_fault_that_only_padding_shows_is_found_with_prompts_of_ones_own(
    prompts: Any,
) -> None:
    report = scan("demo:left-padding", prompts=prompts, dtypes=["float16"])
    assert run_of(report, "float16", "eager").verdict is Verdict.OVERFLOW
    first = run_of(report, "float16", "eager").first_overflow
    assert first is not None
    assert {name.partition("_")[0] for name in first.probes} == {"padded"}
    assert sum(probe.is_own for probe in report.probes) == len(prompts)


def test_a_quick_scan_of_ones_own_prompts_has_no_padding() -> None:
    report = scan("demo:left-padding", prompts=["The sea was calm."], quick=True)
    assert [probe.kind for probe in report.probes] == ["text"]


def test_a_row_that_the_model_refuses_alone_takes_no_other_with_it(tmp_path: Path) -> None:
    end = 2
    config: Any = transformers.BartConfig(
        vocab_size=320,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        max_position_embeddings=128,
        eos_token_id=end,
    )
    config.num_labels = 3
    torch.manual_seed(0)
    folder = save_checkpoint(
        transformers.BartForSequenceClassification(config), tmp_path, tokenizer=False
    )
    prompts = [[0, 9, 8, end], [0, 9, 8, 7]]
    report = scan(folder, prompts=prompts, dtypes=("bfloat16",), attn_implementations=("sdpa",))
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert "prompt_2 (the model refuses it)" in report.coverage.probes_not_run
