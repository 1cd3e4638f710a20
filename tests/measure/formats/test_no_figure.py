"""Runs with a format that have no KL divergence: nothing is searched, and the report is written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import transformers

import precheck
from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from tests.measure.formats.test_plants import healthy, run_with, scanned, with_value_channel
from tests.tiny_models import VOCAB_SIZE, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report


def assert_can_be_written(report: Report) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert precheck.Report.from_dict(json.loads(text)) == report


def test_a_cast_that_does_not_clip_is_named_where_it_overflows(tmp_path: Path) -> None:
    model = with_value_channel(healthy("mistral"), head=0, channel=5)
    report = scanned(model, tmp_path, kv_cache_dtypes=("fp8_e4m3_unsaturated",))
    run = run_with(report, "kv:fp8_e4m3_unsaturated")
    assert run.verdict is Verdict.OVERFLOW
    assert run.first_overflow is not None
    assert run.first_overflow.mechanism is Mechanism.STORING
    assert run.first_overflow.layer == 1
    assert "PC604" in {finding.code for finding in report.findings}
    assert_can_be_written(report)


def test_a_model_without_logits_is_not_searched(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    save_checkpoint(transformers.BertModel(config).eval(), tmp_path, tokenizer=True)
    report = precheck.scan(
        tmp_path,
        dtypes=["float32"],
        attn_implementations=["sdpa"],
        quantizations=["int4"],
        quick=True,
    )
    assert run_with(report, "q:int4").format_culprits is None
    assert_can_be_written(report)
