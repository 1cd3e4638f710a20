"""Decoding with the cache in every run: the model's own, and what breaks after some steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.errors import UsageError
from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from precheck.render.formats.console_report import render_console
from tests.measure.blame.test_live import FINE, LATER
from tests.measure.scans import run_of
from tests.render.wide import too_wide
from tests.tiny_models import architectures, save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report

NUM_TOKENS = 10


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("generation")
    checkpoints = {name: folder / name for name in ("gemma-prompt", "qwen2-eager")}
    for name, checkpoint in checkpoints.items():
        checkpoint.mkdir()
        GALLERY[name].build(checkpoint)
    return checkpoints


@pytest.fixture(scope="module")
def later(folders: dict[str, Path]) -> Report:
    """A prompt that is fine, and whose answer is not."""
    return precheck.scan(str(folders["gemma-prompt"]), prompts=[LATER, FINE], generate=NUM_TOKENS)


def test_greedy_tokens_are_those_of_a_plain_generate(folders: dict[str, Path]) -> None:
    folder = folders["qwen2-eager"]
    report = precheck.scan(
        str(folder),
        prompts=[FINE],
        generate=NUM_TOKENS,
        dtypes=["float32", "bfloat16"],
        attn_implementations=["sdpa"],
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(FINE, return_tensors="pt")
    for run in report.runs:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, run.dtype), attn_implementation="sdpa"
        )
        plain = model.generate(**inputs, max_new_tokens=NUM_TOKENS, do_sample=False)
        text = tokenizer.decode(plain[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        greedy = next(one for one in run.generations if one.way == "greedy")
        assert greedy.text == text
        assert greedy.num_tokens <= NUM_TOKENS


def test_the_reported_symptoms_are_what_is_written(folders: dict[str, Path]) -> None:
    report = precheck.scan(str(folders["qwen2-eager"]), dtypes=["float16"], quick=True, generate=8)
    broken = run_of(report, "float16", "eager")
    greedy, sampled = broken.generations
    assert greedy.text == "!!!!!!!!"
    assert (greedy.broken_step, greedy.first_difference) == (0, 0)
    assert greedy.error is None
    assert sampled.error is not None
    assert sampled.error.startswith("RuntimeError: probability tensor contains either `inf`")
    assert sampled.num_tokens == 0
    fine = run_of(report, "float16", "sdpa")
    assert [one.broken_step for one in fine.generations] == [None, None]
    assert [one.first_difference for one in fine.generations] == [None, None]


def test_a_failure_that_begins_after_some_steps_fails_the_run(later: Report) -> None:
    broken = run_of(later, "float16", "sdpa")
    assert broken.verdict is Verdict.OVERFLOW
    # every layer of the prompt itself is finite
    assert all(layer.num_nan == layer.num_inf == 0 for layer in broken.layers)
    greedy = broken.generations[0]
    assert (greedy.probe, greedy.way) == ("prompt_1", "greedy")
    assert greedy.broken_step is not None
    assert greedy.broken_step > 1
    # the token that the broken forward should have written
    assert greedy.first_difference == greedy.broken_step
    first = broken.first_overflow
    assert first is not None
    assert (first.module, first.mechanism) == ("model.layers.3.mlp", Mechanism.GATED_PRODUCT)
    assert first.probes == ("prompt_1",)
    assert broken.generations[2].broken_step is None
    (finding,) = (finding for finding in later.findings if finding.code == "PC101")
    assert f"it starts after {greedy.broken_step} generated tokens" in finding.message
    assert later.recommendation is not None
    # which of the two, says what the processor computes natively
    assert later.recommendation.dtype in {"bfloat16", "float32"}


def test_without_generating_the_same_prompts_are_safe(folders: dict[str, Path]) -> None:
    report = precheck.scan(str(folders["gemma-prompt"]), prompts=[LATER], dtypes=["float16"])
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}


def test_streamed_and_resident_write_the_same(later: Report, folders: dict[str, Path]) -> None:
    resident = precheck.scan(
        str(folders["gemma-prompt"]),
        prompts=[LATER, FINE],
        generate=NUM_TOKENS,
        resident=True,
    )
    assert [run.generations for run in resident.runs] == [run.generations for run in later.runs]


def test_all_runs_draw_with_the_same_random_numbers_and_the_callers_stay(
    folders: dict[str, Path],
) -> None:
    state = torch.random.get_rng_state()
    options: dict[str, Any] = {"prompts": [FINE], "generate": 6, "attn_implementations": ["sdpa"]}
    first = precheck.scan(str(folders["gemma-prompt"]), **options)
    again = precheck.scan(str(folders["gemma-prompt"]), **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    texts = [[one.text for one in run.generations] for run in first.runs]
    assert texts == [[one.text for one in run.generations] for run in again.runs]
    # float16 draws what float32 draws: their scores are next to the same
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize("name", architectures(["mixtral", "t5", "gemma2", "gpt2"]))
def test_other_architectures_write_without_a_tokenizer(name: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tiny(name), tmp_path, tokenizer=False)
    report = precheck.scan(str(folder), dtypes=["bfloat16"], quick=True, generate=3)
    for run in report.runs:
        assert [one.error for one in run.generations] == [None, None]
        assert all(0 < one.num_tokens <= 3 for one in run.generations)


def test_the_table_shows_text_and_error_at_any_width(later: Report) -> None:
    for width in (80, 200):
        shown = render_console(later, width=width, colour=False, all_layers=False)
        assert 'Generated after prompt "prompt_1"' in shown
        assert 'Generated after prompt "prompt_2"' in shown
        assert too_wide(shown, width=width) == []


def test_a_negative_number_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="generate is -1"):
        precheck.scan("demo:qwen2-eager", generate=-1)
