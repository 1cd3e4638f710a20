"""How somebody else gets the same report, and the same failure without precheck."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from precheck.records.attention import as_argument
from precheck.records.quantities import python_string
from precheck.render.parts.culprit import focus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report

_SAME_VERSIONS = ("torch", "transformers", "accelerate", "tokenizers", "safetensors")


def scan_command(report: Report) -> str:
    """The scan, with what was asked for spelled out; prompts of one's own have to be added."""
    words = ["precheck", "scan", report.model.id]
    if report.model.revision is not None:
        words += ["--revision", report.model.revision]
    if report.is_static:
        return shlex.join((*words, "--static"))
    dtypes = dict.fromkeys(run.dtype.value for run in report.runs)
    asked = dict.fromkeys(run.requested_attn_implementation for run in report.runs)
    devices = dict.fromkeys(run.device for run in report.runs)
    if dtypes:
        words += ["--dtype", ",".join(dtypes), "--attn", ",".join(asked), "--device", *devices]
    return shlex.join(words)


def install_command(report: Report) -> str:
    """The versions that the scan ran with; local ones such as +cpu are another index's."""
    libraries = report.environment.libraries
    pinned = [
        f"{name}=={libraries[name].partition('+')[0]}"
        for name in _SAME_VERSIONS
        if name in libraries
    ]
    return shlex.join(("pip", "install", f"precheck-llm=={report.precheck_version}", *pinned))


def own_prompts(report: Report) -> int:
    """How many prompts of the user's own took part."""
    return sum(probe.is_own for probe in report.probes)


def plain_reproduction(report: Report) -> str | None:
    """Python that shows the failure with transformers alone; None unless every probe breaks."""
    at = focus(report)
    overflow = at.run.first_overflow if at else None
    if at is None or overflow is None or len(overflow.probes) < len(report.probes):
        return None
    return "\n".join(_lines(report, dtype=at.run.dtype, attn=at.run.requested_attn_implementation))


def _lines(report: Report, *, dtype: str, attn: str) -> Iterator[str]:
    model = report.model
    revision = f", revision={python_string(model.revision)}" if model.revision else ""
    yield "import torch"
    yield f"from transformers import AutoTokenizer, {model.auto_class}"
    yield ""
    yield f"name = {python_string(model.local_id)}"
    yield f"tokenizer = AutoTokenizer.from_pretrained(name{revision})"
    yield f"model = {model.auto_class}.from_pretrained("
    attention = json.dumps(as_argument(attn))
    yield f"    name{revision}, dtype=torch.{dtype}, attn_implementation={attention}"
    yield ")"
    yield 'inputs = tokenizer("The capital of France is", return_tensors="pt")'
    yield "with torch.no_grad():"
    yield "    print(model(**inputs).logits.isfinite().all())  # False"
