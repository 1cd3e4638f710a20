"""A remedy that is predicted to help is tried: its own snippet, on the model as people load it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.measure.probes.builtin import BUILTIN

if TYPE_CHECKING:
    from pathlib import Path


def logits_of(model: Any, tokenizer: Any) -> list[torch.Tensor]:
    """Logits of every built-in text, ``(tokens, vocabulary)`` float64 each."""
    found = []
    for prompt in BUILTIN:
        ids = tokenizer(prompt.text, return_tensors="pt").input_ids[:, :64]
        with torch.no_grad():
            found.append(model(ids).logits[0].double())
    return found


@pytest.mark.parametrize("name", ["llama-product", "gemma-prompt"])
def test_one_module_in_float32_helps_where_that_is_predicted(name: str, tmp_path: Path) -> None:
    GALLERY[name].build(tmp_path)
    report = precheck.scan(tmp_path, gpus=("T4",))
    assert report.recommendation is not None
    assert report.recommendation.dtype == "float32"
    remedy = report.recommendation.remedies[0]
    assert remedy.helps
    assert remedy.snippet is not None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def logits(dtype: torch.dtype, *, remedied: bool = False) -> list[torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        if remedied:
            exec(remedy.snippet or "", {"model": model, "torch": torch})  # noqa: S102  our own
        return logits_of(model, tokenizer)

    plain = logits(torch.float16)
    assert not all(bool(each.isfinite().all()) for each in plain)
    reference = logits(torch.float32)
    for ours, theirs in zip(logits(torch.float16, remedied=True), reference, strict=True):
        assert bool(ours.isfinite().all())
        divergence = torch.nn.functional.kl_div(
            ours.log_softmax(-1), theirs.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        assert float(divergence.mean()) < 0.01


def test_exact_rescaling_helps_a_residual_stream_and_no_module_does(tmp_path: Path) -> None:
    GALLERY["gemma3-residual"].build(tmp_path)
    report = precheck.scan(tmp_path, quick=True, gpus=("T4", "L4"))
    assert report.recommendation is not None
    module, rescaling, clamping = report.recommendation.remedies
    assert (module.helps, rescaling.helps, clamping.helps) == (False, True, False)
    assert rescaling.snippet == f"precheck fix {tmp_path} -o ./fixed"
    assert report.other_recommendations[0].remedies == ()
