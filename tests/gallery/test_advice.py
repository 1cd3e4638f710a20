"""No advice names what the class lacks, the device lacks, or the scan has seen break.

Every built-in model, and an encoder whose class has eager attention alone, on every kind of device
and with every mechanism in the place of its own. What is named is read off the sentences, and held
against the tables and the runs, not against the function that wrote them.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.facts import devices
from precheck.facts.attention import implementation, names
from precheck.facts.hardware import Hardware, Support
from precheck.judge import judge
from precheck.records.configuration import Configuration
from precheck.records.finding import USABLE
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.report import Measurements
from tests.tiny_models import save_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report

DEVICES = (
    *("P100", "V100", "T4", "A100", "H100", "RTX 5090", "MI300X", "Radeon RX 6800"),
    *("Apple M1", "Gaudi 1", "Ascend 910A", "cpu"),
)
DTYPE = re.compile(r"\b(?:float16|bfloat16|float32)\b")
ATTENTION = re.compile(rf"\b(?:{'|'.join(names())})\b")
PAIR = re.compile(rf"({DTYPE.pattern}) \+ ({ATTENTION.pattern})")
NO_ADVICE = (
    "which forces eager",
    "the model for float16",
    "Where bfloat16 is not native",
    "the head in float32",
    "masks in float32",
    "that module in float32",
    "these modules in float32",
    "accumulates in float32",
    "accumulate in float32",
    "computes in float32",
    "the rest in float16",
    "runs everything in float16",
    "float16 runs by their precision",
    "bfloat16 and float32 stay far below their maximum",
)
MEASURES = {"PC116", "PC903", "PC901"}
"""Their advice is a scan of what is not known."""


def deberta(folder: Path) -> None:
    """Disentangled attention, whose content-to-position product is too large in one layer."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "relative_attention": True,
        "position_buckets": 16,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "max_position_embeddings": 128,
        "type_vocab_size": 0,
        "num_labels": 3,
    }
    config = DebertaV2Config(**settings)
    model = DebertaV2ForSequenceClassification(config)
    with torch.no_grad():
        for name, sign in (("query_proj", 1.0), ("key_proj", -1.0)):
            linear = model.get_submodule(f"deberta.encoder.layer.1.attention.self.{name}")
            linear.weight[3] = 0.0
            linear.bias[3] = sign * 300.0
    save_checkpoint(model, folder, tokenizer=False)


@cache
def measured(name: str) -> Measurements:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        if name == "deberta":
            path.mkdir()
            deberta(path)
            report = precheck.scan(path, quick=True)
        else:
            report = precheck.scan(f"demo:{name}", quick=True)
    return Measurements(
        model=report.model,
        checkpoint=report.checkpoint,
        environment=report.environment,
        probes=report.probes,
        coverage=report.coverage,
        runs=report.runs,
        headroom=report.headroom,
        seed=report.seed,
    )


def with_mechanism(scan: Measurements, mechanism: Mechanism | None) -> Measurements:
    """The same scan, if another mechanism had been what broke; None: as it is."""
    if mechanism is None:
        return scan
    runs = tuple(
        replace(run, overflows=tuple(replace(row, mechanism=mechanism) for row in run.overflows))
        for run in scan.runs
    )
    return replace(scan, runs=runs)


def sentences(report: Report) -> Iterator[str]:
    """All that tells somebody to do something."""
    for finding in report.findings:
        if finding.code not in MEASURES:
            yield finding.advice
    for recommendation in report.recommendations:
        yield recommendation.name
        yield from recommendation.snippets.values()
        for remedy in recommendation.remedies:
            if remedy.helps:
                yield f"{remedy.what} {remedy.snippet or ''}"
        for engine in recommendation.engines:
            if engine.engine != "llama.cpp":  # keeps the residual stream in float32
                yield engine.command or ""


def named(text: str) -> Iterator[tuple[str | None, str | None]]:
    """Dtypes and attention implementations that a sentence names, as pairs where it pairs them."""
    for phrase in NO_ADVICE:
        text = text.replace(phrase, "")
    yield from PAIR.findall(text)
    text = PAIR.sub("", text)
    yield from ((dtype, None) for dtype in DTYPE.findall(text))
    yield from ((None, attn) for attn in ATTENTION.findall(text))


def faults(report: Report, device: Hardware) -> Iterator[str]:
    for text in sentences(report):
        for dtype, attn in named(text):
            if attn is not None:
                yield from (f"{fault}: {text}" for fault in of_attention(report, attn, device))
            if dtype is not None:
                yield from (f"{fault}: {text}" for fault in of_dtype(report, dtype, device))
            if attn is not None and dtype is not None and has_broken(report, dtype, attn):
                yield f"{dtype} + {attn} broke: {text}"


def of_attention(report: Report, attn: str, device: Hardware) -> Iterator[str]:
    attention = report.model.attention
    has = {run.attn_implementation for run in report.runs}
    if attn not in has | set(attention.supported if attention else names()):
        yield f"the class lacks {attn}"
    row = implementation(attn)
    if row is not None and row.runs_on(device) is not True:
        yield f"{device.name} lacks {attn}"


def of_dtype(report: Report, dtype: str, device: Hardware) -> Iterator[str]:
    support = device.support(Dtype(dtype))
    is_emulated = support is Support.EMULATED and device.kind != "cpu"
    if support is Support.NONE or is_emulated:
        yield f"{device.name} lacks {dtype}"
    verdicts = {run.verdict for run in report.runs if run.dtype == dtype}
    if verdicts and not verdicts & USABLE:
        yield f"{dtype} broke"


def has_broken(report: Report, dtype: str, attn: str) -> bool:
    pair = Configuration(dtype=Dtype(dtype), attn_implementation=attn)
    return any(run.configuration == pair and run.verdict not in USABLE for run in report.runs)


@pytest.mark.parametrize("name", [*GALLERY, "deberta"])
def test_advice_names_nothing_that_cannot_be_had(name: str) -> None:
    scan = measured(name)
    for device in DEVICES:
        hardware = devices.find(device)
        for mechanism in Mechanism if any(run.overflows for run in scan.runs) else (None,):
            report = judge(with_mechanism(scan, mechanism), gpus=(device,), version="0.1.0")
            assert not list(faults(report, hardware)), mechanism


def test_a_class_with_eager_attention_alone_is_told_the_dtypes() -> None:
    scan = measured("deberta")
    for device, dtypes in (("T4", "float32"), ("A100", "bfloat16 or float32")):
        report = judge(scan, gpus=(device,), version="0.1.0")
        advice = next(each.advice for each in report.findings if each.code == "PC301")
        assert advice.startswith(
            f"No other attention implementation is available on {device}: use {dtypes}."
        )


def test_a_kernel_is_named_where_the_device_has_it() -> None:
    scan = measured("qwen2-eager")
    for gpus, kernels in (
        (("T4",), '"sdpa"'),
        (("A100",), '"sdpa" or "flash_attention_2"'),
        (("T4", "A100"), '"sdpa"'),
        (("cpu",), '"sdpa"'),
    ):
        report = judge(scan, gpus=gpus, version="0.1.0")
        advice = next(each.advice for each in report.findings if each.code == "PC301")
        assert advice.startswith(f"Load with attn_implementation={kernels}, which")
