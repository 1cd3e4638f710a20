"""Trained models: no false alarm in their own dtype, and the overflow that is really there.

SmolLM2 and Gemma are decoded from 4-bit files, so that every figure is that of the decoded model.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import precheck
from precheck.judge.thresholds import DEGRADED_KL_DIVERGENCE
from precheck.measure.probes.builtin import HELD_OUT
from precheck.records.answers import AnswerKind
from precheck.records.finding import USABLE, Severity, Verdict
from precheck.records.precision import Dtype
from precheck.records.traces import Section
from tests.real.fetch import NAMES

if TYPE_CHECKING:
    from precheck.records.report import Report, Run

MODELS = Path(os.environ.get("PRECHECK_REAL_MODELS", "build/real"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all((MODELS / name).is_dir() for name in NAMES), reason="make real fetches the models"
    ),
]
CAUSAL = ("smollm2-135m", "gemma3-270m")


@cache
def scanned(name: str) -> Report:
    return precheck.scan(str(MODELS / name), attn_implementations=["sdpa"])


def run_of(name: str, dtype: Dtype) -> Run:
    return next(run for run in scanned(name).runs if run.dtype is dtype)


def plain_kl(name: str) -> float:
    """Mean KL(float32 || bfloat16) of plain forwards over texts that no scan uses, nats."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    reference, run = (
        AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=dtype, attn_implementation="sdpa")
        for dtype in (torch.float32, torch.bfloat16)
    )
    divergences = []
    for text in HELD_OUT:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = reference(ids).logits[0].double().log_softmax(dim=-1)
            found = run(ids).logits[0].double().log_softmax(dim=-1)
        divergences.append((expected.exp() * (expected - found)).sum(dim=-1))
    return float(torch.cat(divergences).mean())


@pytest.mark.parametrize("name", CAUSAL)
def test_bfloat16_is_judged_by_ordinary_text(name: str) -> None:
    run = run_of(name, Dtype.BFLOAT16)
    assert run.verdict is Verdict.SAFE
    assert run.logits is not None
    verdict, mean = run.logits.kl_divergence_verdict, run.logits.kl_divergence_mean
    assert verdict is not None
    assert mean is not None
    plain = plain_kl(name)
    print(  # noqa: T201  the figures are what this is run for
        f"\n{name} (decoded from 4 bits), bfloat16 + sdpa against float32, nats: "
        f"ordinary inputs {verdict:.2g}, all probes {mean:.2g}, plain forwards over other "
        f"texts {plain:.2g}"
    )
    assert verdict < mean
    assert plain / 4 < verdict < 4 * plain
    assert verdict < DEGRADED_KL_DIVERGENCE.value / 3


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_in_the_dtype_that_is_stored(name: str) -> None:
    report = scanned(name)
    assert report.model.deploy_dtype == "float32"
    assert run_of(name, Dtype.FLOAT32).verdict is Verdict.SAFE
    assert run_of(name, Dtype.BFLOAT16).verdict in USABLE
    of_float16 = {index for index, run in enumerate(report.runs) if run.dtype is Dtype.FLOAT16}
    errors = [
        finding
        for finding in report.findings
        if finding.severity is Severity.ERROR and not set(finding.runs) <= of_float16
    ]
    assert errors == []


def test_gemma_overflows_where_its_residual_stream_does() -> None:
    run = run_of("gemma3-270m", Dtype.FLOAT16)
    assert run.verdict is Verdict.OVERFLOW
    first = run.first_overflow
    assert first is not None
    assert first.section is Section.DECODER
    assert first.reference_abs_max is not None
    assert first.reference_abs_max > first.limit


def test_smollm2_runs_in_every_dtype() -> None:
    assert {run.verdict for run in scanned("smollm2-135m").runs} <= USABLE


@pytest.mark.parametrize("name", NAMES)
def test_no_warning_of_a_cache_in_fp8(name: str) -> None:
    report = scanned(name)
    rows = report.key_values
    assert len(rows) == report.model.num_decoder_layers
    assert all(None not in {row.query, row.projected_key, row.key, row.value} for row in rows)
    assert all(row.is_key_normalised == name.startswith("gemma3") for row in rows)
    assert "PC601" not in {finding.code for finding in report.findings}


def test_minilm_keeps_its_embeddings() -> None:
    report = scanned("minilm-l6")
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    half, coarse = (run_of("minilm-l6", dtype).answers for dtype in (Dtype.FLOAT16, Dtype.BFLOAT16))
    assert half is not None
    assert coarse is not None
    assert half.kind is AnswerKind.EMBEDDINGS
    assert half.error is not None
    assert coarse.error is not None
    assert half.error < coarse.error < 0.05
