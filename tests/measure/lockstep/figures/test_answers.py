"""Models that generate nothing: scores and embeddings, judged by what users do with them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
import transformers

from precheck.measure.lockstep.figures.answers import AnswersTotals, embeddings_of, scores_of
from precheck.measure.probes.batch import Batch, stack_rows
from precheck.measure.subject.pooling import read_embedding
from precheck.pipeline import scan
from precheck.records.answers import AnswerKind, AnswersTrace, Embedding, Pooling
from precheck.records.finding import Verdict
from precheck.records.traces import Probe
from tests.tiny_models import save_checkpoint, tiny, tiny_config, tiny_of

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report, Run


def batch_of(*lengths: int) -> Batch:
    longest = max(lengths)
    return Batch(
        probes=tuple(
            Probe(name=f"text_{row}", kind="text", num_tokens=length, is_ordinary=True)
            for row, length in enumerate(lengths)
        ),
        input_ids=stack_rows([[1] * longest for _ in lengths]),
        attention_mask=stack_rows([[0] * (longest - n) + [1] * n for n in lengths]),
    )


def trace_of(run: list[float], reference: list[float]) -> AnswersTrace:
    totals = AnswersTotals(kind=AnswerKind.SCORES)
    one_each = batch_of(*[3] * len(run))
    totals.add(torch.tensor(run)[:, None], torch.tensor(reference)[:, None], batch=one_each)
    trace = totals.trace
    assert trace is not None
    return trace


def test_scores_are_measured_by_their_spread() -> None:
    reference = [9.0, 9.02, 9.04, 9.06]
    trace = trace_of([9.0, 9.0, 9.0625, 9.0625], reference)
    error = torch.tensor([0.0, 0.02, 0.0225, 0.0025]).square().mean().sqrt()
    assert trace.error == pytest.approx(
        float(error / torch.tensor(reference).std(correction=0)), 1e-3
    )
    assert (trace.num_distinct, trace.reference_num_distinct) == (2, 4)
    assert trace.order_agreement == pytest.approx(4 / 6)  # two pairs are ties
    shifted = trace_of([109.0, 109.02, 109.04, 109.06], [109.0, 109.02, 109.04, 109.06])
    assert (shifted.error, shifted.order_agreement) == (0.0, 1.0)


def test_scores_without_a_spread_have_no_error() -> None:
    assert trace_of([1.0, 1.1, 1.0, 1.0], [1.0] * 4).error is None


def test_inputs_that_are_not_finite_are_left_out_and_three_are_too_few() -> None:
    assert trace_of([1.0, 2.0, 3.0, 4.0, float("nan")], [1.0, 2.0, 3.0, 4.0, 5.0]).num_inputs == 4
    totals = AnswersTotals(kind=AnswerKind.SCORES)
    totals.add(torch.ones(3, 1), torch.ones(3, 1), batch=batch_of(1, 1, 1))
    assert totals.trace is None


def test_only_scores_of_whole_inputs_are_answers() -> None:
    batch = batch_of(2, 2)
    assert scores_of(torch.zeros(2, 1), batch) is not None
    assert scores_of(torch.zeros(2, 2, 5), batch) is None
    assert scores_of(torch.zeros(2, 50_000), batch) is None


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.MEAN, [1.5, 2.0]),
        (Pooling.CLS, [1.0, 2.0]),
        (Pooling.LAST, [2.0, 2.0]),
        (Pooling.MAX, [2.0, 2.0]),
    ],
)
def test_padding_is_left_out_of_an_embedding(pooling: Pooling, expected: list[float]) -> None:
    states = torch.tensor([[[9.0], [1.0], [2.0]], [[9.0], [9.0], [2.0]]])
    batch = Batch(
        probes=batch_of(2, 1).probes,
        input_ids=stack_rows([[1, 1, 1], [1, 1, 1]]),
        attention_mask=stack_rows([[0, 1, 1], [0, 0, 1]]),
    )
    found = embeddings_of(states, batch, Embedding(pooling=pooling))
    assert found is not None
    assert found.flatten().tolist() == expected


def test_an_embedding_is_normalised_in_its_own_dtype() -> None:
    states = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    embedding = Embedding(pooling=Pooling.LAST, is_normalised=True)
    found = embeddings_of(states, batch_of(3, 3), embedding)
    assert found is not None
    assert found.dtype is torch.bfloat16
    assert found.float().norm(dim=-1).tolist() == pytest.approx([1.0, 1.0], abs=0.01)


def sentence_transformer(folder: Path, config: object, *, normalises: bool = True) -> Path:
    modules = [
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        *([{"type": "sentence_transformers.models.Normalize", "path": "2"}] if normalises else []),
    ]
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, Pooling.LAST),
        ({"pooling_mode_cls_token": True}, Pooling.CLS),
        ({"pooling_mode": "max"}, Pooling.MAX),
        ({}, Pooling.MEAN),
    ],
)
def test_the_folder_says_how_it_pools(config: object, expected: Pooling, tmp_path: Path) -> None:
    found = read_embedding(sentence_transformer(tmp_path, config))
    assert found == Embedding(pooling=expected, is_normalised=True)


NESTED = "[" * 100_000
OUTSIDE = '[{"type": "x.Pooling", "path": "../other"}]'


@pytest.mark.parametrize(
    "content", ["{", "[1, null]", "{}", '[{"type": 3, "path": 4}]', NESTED, OUTSIDE]
)
def test_a_folder_that_makes_no_sense_is_pooled_by_the_mean(content: str, tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    assert read_embedding(tmp_path) == Embedding()
    assert read_embedding(tmp_path / "absent") == Embedding()


# Whole scans.


def reranker(bias: float, scale: float) -> transformers.PreTrainedModel:
    """BERT with one score, ``bias`` give or take what ``scale`` leaves of the differences."""
    config: Any = tiny_config("bert")
    config.num_labels = 1
    torch.manual_seed(0)
    model: Any = transformers.BertForSequenceClassification(config).eval()
    whole: Any = tiny("bert")
    model.bert.load_state_dict(whole.bert.state_dict(), strict=False)
    with torch.no_grad():
        model.classifier.weight.mul_(scale)
        model.classifier.bias.fill_(bias)
    return cast("transformers.PreTrainedModel", model)


def run_of(report: Report, dtype: str) -> Run:
    return next(run for run in report.runs if run.dtype == dtype)


def scanned(model: transformers.PreTrainedModel, folder: Path) -> Report:
    return scan(
        save_checkpoint(model, folder, tokenizer=True),
        dtypes=("float16", "bfloat16", "float32"),
        attn_implementations=("sdpa",),
    )


def test_scores_that_bfloat16_cannot_tell_apart_are_found(tmp_path: Path) -> None:
    report = scanned(reranker(bias=9.0, scale=2.0), tmp_path)
    lossy = run_of(report, "bfloat16")
    assert lossy.verdict is Verdict.DEGRADED
    assert lossy.answers is not None
    assert lossy.answers.num_distinct is not None
    assert lossy.answers.reference_num_distinct is not None
    assert lossy.answers.num_distinct < lossy.answers.reference_num_distinct
    index = report.runs.index(lossy)
    (finding,) = [
        finding
        for finding in report.findings
        if finding.code == "PC201" and finding.runs == (index,)
    ]
    assert finding.layer is None
    assert "0.0625 apart" in finding.message
    assert lossy.logits is not None
    assert lossy.logits.kl_divergence_mean is None


def test_a_sound_reranker_is_silent(tmp_path: Path) -> None:
    report = scanned(reranker(bias=0.0, scale=30.0), tmp_path)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert not [finding for finding in report.findings if finding.code.startswith("PC2")]


def test_a_model_that_generates_nothing_is_told_nothing_of_sampling(tmp_path: Path) -> None:
    model: Any = reranker(bias=0.0, scale=30.0)
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias[3] = 70_000.0
    report = scanned(model, tmp_path)
    broken = run_of(report, "float16")
    assert broken.verdict is Verdict.OVERFLOW
    assert broken.symptom is not None
    assert (broken.symptom.greedy, broken.symptom.sampling) == (None, None)
    assert broken.symptom.answer is not None
    assert "NaN score" in broken.symptom.answer
    said = " ".join(f"{finding.message} {finding.in_vain}" for finding in report.findings)
    assert "emperature" not in said
    assert not re.search(r"[Ii]nstruct\b", said)


def test_an_encoder_is_judged_by_its_embeddings(tmp_path: Path) -> None:
    config: Any = tiny_config("bert")
    whole: Any = tiny_of(config)
    model = transformers.BertModel(config).eval()
    model.load_state_dict(whole.bert.state_dict(), strict=False)
    folder = save_checkpoint(model, tmp_path, tokenizer=True)
    sentence_transformer(folder, {"pooling_mode_cls_token": True})
    report = scan(folder, dtypes=("bfloat16", "float32"), attn_implementations=("sdpa",))
    answers = run_of(report, "bfloat16").answers
    assert report.model.embedding == Embedding(pooling=Pooling.CLS, is_normalised=True)
    assert answers is not None
    assert answers.kind is AnswerKind.EMBEDDINGS
    assert answers.error is not None
    assert 0 < answers.error < 0.05
    assert answers.cosine_min is not None
    assert answers.cosine_min > 0.999
