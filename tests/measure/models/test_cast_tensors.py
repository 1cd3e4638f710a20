"""Live modules that were cast as a whole, and those that were loaded in their dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import precheck
from precheck.errors import UsageError
from precheck.measure.models.cast_tensors import rounded_buffers, rounded_parameters
from precheck.records.finding import Severity
from tests.measure.scans import run_of
from tests.tiny_models import save_checkpoint, tiny, tiny_config, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report

ROTARY = ["model.rotary_emb.inv_freq", "model.rotary_emb.original_inv_freq"]
HALVES = (torch.bfloat16, torch.float16)

pytestmark = pytest.mark.usefixtures("far")


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=False)


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings]


@pytest.mark.parametrize("dtype", HALVES)
def test_buffers_that_a_cast_rounded_are_told_from_loaded_ones(
    folder: Path, dtype: torch.dtype
) -> None:
    assert rounded_buffers(loaded(folder, dtype)) == {}
    assert rounded_buffers(loaded(folder, torch.float32)) == {}
    cast = loaded(folder, torch.float32).to(dtype)
    computed = rounded_buffers(cast)
    assert sorted(computed) == ROTARY
    expected = dict(loaded(folder, dtype).named_buffers())
    assert all(torch.equal(computed[name], expected[name]) for name in ROTARY)
    # casting back mends nothing, and is seen all the same
    assert sorted(rounded_buffers(cast.to(torch.float32))) == ROTARY


def test_buffers_that_the_caller_wrote_are_the_callers(folder: Path) -> None:
    model = loaded(folder, torch.bfloat16)
    model.model.rotary_emb.inv_freq.mul_(0.5)
    assert rounded_buffers(model) == {}


def test_parameters_that_a_load_keeps_in_float32_are_named(tmp_path: Path) -> None:
    save_checkpoint(tiny("t5"), tmp_path, tokenizer=False)
    classes = transformers.T5ForConditionalGeneration
    assert rounded_parameters(classes.from_pretrained(tmp_path, dtype=torch.float16)) == ()
    model: Any = classes.from_pretrained(tmp_path, dtype=torch.float32)
    assert rounded_parameters(model) == ()
    names = rounded_parameters(model.half())
    assert names
    assert all(name.endswith("wo.weight") for name in names)


def test_the_reference_has_the_buffers_that_a_load_computes(folder: Path) -> None:
    quick: dict[str, Any] = {"dtypes": ["bfloat16"], "attn_implementations": ["sdpa"]}
    cast = loaded(folder, torch.float32).to(torch.bfloat16)
    damaged = precheck.scan(cast, **quick)
    healthy = precheck.scan(loaded(folder, torch.bfloat16), **quick)
    assert cast.model.rotary_emb.inv_freq.dtype is torch.bfloat16  # left as it was
    assert "PC520" in codes(damaged)
    assert "PC520" not in codes(healthy)
    (finding,) = (finding for finding in damaged.findings if finding.code == "PC520")
    assert finding.severity is Severity.WARNING
    assert "typical KL" in finding.message
    assert damaged.coverage.longest_probe_tokens == 1024


def test_the_loss_is_that_of_plain_transformers(folder: Path) -> None:
    ids = torch.randint(0, 300, (1, 900), generator=torch.Generator().manual_seed(1))
    cast = loaded(folder, torch.float32).to(torch.bfloat16)
    # the weights of a cast module are rounded for good: its reference widens them
    right = loaded(folder, torch.bfloat16).float()
    with torch.no_grad():
        expected = right(ids).logits.double().log_softmax(-1)
        given = cast(ids).logits.double().log_softmax(-1)
    divergence = float((expected.exp() * (expected - given)).sum(-1).mean())
    report = precheck.scan(
        cast, dtypes=["bfloat16"], attn_implementations=["sdpa"], prompts=[ids[0].tolist()]
    )
    logits = run_of(report, "bfloat16", "sdpa").logits
    assert logits is not None
    assert logits.kl_divergence_mean == pytest.approx(divergence, rel=0.2)


def test_a_live_module_takes_a_tokenizer(folder: Path) -> None:
    model = loaded(folder, torch.bfloat16)
    options: dict[str, Any] = {"dtypes": ["bfloat16"], "quick": True}
    report = precheck.scan(model, tokenizer=tiny_tokenizer(), **options)
    assert {probe.kind for probe in report.probes} == {"text", "chat"}
    without = precheck.scan(model, **options)
    assert {probe.kind for probe in without.probes} == {"token_ids"}
    prompted = precheck.scan(model, tokenizer=tiny_tokenizer(), prompts=["Hello"], **options)
    assert prompted.probes[0].is_own
    with pytest.raises(UsageError, match="a tokenizer for a checkpoint"):
        precheck.scan(folder, tokenizer=tiny_tokenizer())


def test_a_buffer_that_a_load_makes_in_the_dtype_was_not_cast(tmp_path: Path) -> None:
    """Gemma's embedding scale, the square root of a width, has no exact value in 16 bits."""
    config: Any = tiny_config("gemma3")
    config.hidden_size, config.num_attention_heads, config.num_key_value_heads = 48, 4, 2
    torch.manual_seed(0)
    save_checkpoint(transformers.Gemma3ForCausalLM(config), tmp_path, tokenizer=False)
    assert rounded_buffers(loaded(tmp_path, torch.bfloat16)) == {}
    assert rounded_buffers(loaded(tmp_path, torch.float32).to(torch.bfloat16))
