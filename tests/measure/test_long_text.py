"""A text in parts: the same figures as at once, in less memory, and faults where they happen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.errors import UsageError
from precheck.measure import scan as scanning
from precheck.measure.long_text import SMALLEST_PART
from precheck.measure.probes.context import requested_context
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from tests import hand_made
from tests.measure.scans import passes, run_of
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report, Run

pytestmark = pytest.mark.usefixtures("far")
LENGTH, PART = 448, 160
DTYPES = ("float16", "float32")


def in_parts(monkeypatch: pytest.MonkeyPatch, part_tokens: int | None = PART) -> None:
    monkeypatch.setattr(scanning, "part_tokens", lambda *_, **__: part_tokens)


def scan_at_length(folder: Path, **options: Any) -> tuple[Report, dict[tuple[str, str], Any]]:
    """The report, and the logits of the long text by run."""
    options.setdefault("dtypes", DTYPES)
    with passes() as all_passes:
        report = scan(folder, quick=True, context=LENGTH, **options)
    logits: dict[tuple[str, str], Any] = {}
    for one in all_passes:
        if one.batch.is_by_position:
            logits.setdefault(one.configuration, []).extend(one.final)
    return report, {run: torch.cat(parts, dim=1) for run, parts in logits.items()}


@pytest.mark.parametrize("name", ["gemma3", "bloom"])
def test_a_text_in_parts_gives_what_it_gives_at_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tiny(name), tmp_path, tokenizer=True)
    whole, whole_logits = scan_at_length(folder)
    in_parts(monkeypatch)
    report, logits = scan_at_length(folder)
    assert report.coverage.long_text is not None
    assert report.coverage.long_text.part_tokens == PART
    assert set(logits) == set(whole_logits)
    for configuration, expected in whole_logits.items():
        assert logits[configuration].shape == expected.shape
        step = 1e-5 if configuration[0] == "float32" else 0.02
        assert float((logits[configuration] - expected).float().abs().max()) < step * float(
            expected.std()
        )
    for run, of_whole in zip(report.runs, whole.runs, strict=True):
        check_alike(run, of_whole)
    at_once = {(row.module, row.op, row.mechanism): row.abs_max for row in whole.headroom}
    for row in report.headroom:  # raw scores of later keys are not computed in parts
        largest = at_once[row.module, row.op, row.mechanism]
        assert row.abs_max <= largest * 1.001
        if row.mechanism != "attention_scores":
            assert row.abs_max == pytest.approx(largest, rel=1e-3)


def check_alike(run: Run, whole: Run) -> None:
    assert run.verdict is whole.verdict
    assert [(row.start, row.end) for row in run.positions] == [
        (row.start, row.end) for row in whole.positions
    ]
    for row, expected in zip(run.positions, whole.positions, strict=True):
        if run.configuration.is_reference:
            continue
        assert row.kl_divergence == pytest.approx(expected.kl_divergence, rel=0.5, abs=1e-6)
        for mechanism, abs_max in expected.abs_max.items():
            if mechanism != "attention_scores":
                assert row.abs_max[mechanism] == pytest.approx(abs_max, rel=1e-3)


def test_a_fault_in_a_later_part_is_found_at_its_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token makes the gated product huge; the text has it once, in the second part."""
    token, position = 250, 200
    model = tiny("llama")
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[token], embedding[:, 7] = 0.0, 0.0
        embedding[token, 7] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[7] = 0.0
            layer.mlp.down_proj.weight[7] = 0.0
        mlp = model.model.layers[1].mlp
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[3, 7] = 300.0
    folder = save_checkpoint(model, tmp_path, tokenizer=True)
    ids = [1 + index % 90 for index in range(LENGTH)]
    ids[position] = token
    in_parts(monkeypatch)
    report = scan(folder, prompts=[ids], dtypes=DTYPES, attn_implementations=["sdpa"])
    run = run_of(report, "float16", "sdpa")
    assert run.verdict is Verdict.OVERFLOW
    assert run.first_overflow is not None
    assert run.first_overflow.mechanism == "gated_product"
    assert run.first_overflow.first_positions == {"prompt_1": position}
    assert len(run.overflows) == 1


def test_layers_that_keep_a_state_are_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose second half is another one after the first alone."""
    model = tiny("llama")
    folder = save_checkpoint(model, tmp_path, tokenizer=True)
    kind: Any = type(model.model)
    forward = kind.forward

    def forgets(self: Any, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            kwargs["position_ids"] = torch.zeros_like(kwargs["input_ids"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", forgets)
    in_parts(monkeypatch)
    report, _ = scan_at_length(folder)
    assert report.coverage.long_text is not None
    assert report.coverage.long_text.part_tokens is None
    assert report.complete


def test_little_memory_makes_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_checkpoint(tiny("llama"), tmp_path, tokenizer=True)
    monkeypatch.setattr("precheck.measure.memory_budget.used_bytes", lambda _: 0)
    report = scan(folder, quick=True, context=512, dtypes=DTYPES, max_memory=530 << 20)
    assert report.coverage.long_text is not None
    part = report.coverage.long_text.part_tokens
    assert part is not None
    assert SMALLEST_PART <= part < report.coverage.long_text.num_tokens


def test_the_length_is_what_was_asked_for(tmp_path: Path) -> None:
    facts = hand_made.measurements().model
    assert facts.max_context is not None
    assert requested_context("max", facts) == facts.max_context
    with pytest.raises(UsageError, match=r"the model's context is \d+"):
        requested_context(facts.max_context + 1, facts)
    folder = save_checkpoint(tiny("llama"), tmp_path, tokenizer=False)
    for wrong in (17, "long", True):
        with pytest.raises(UsageError, match="context is"):
            scan(folder, context=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="static runs nothing"):
        scan(folder, context=512, static=True)
