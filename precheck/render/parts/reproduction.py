"""How somebody else gets the same report, and the same failure without precheck."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from precheck.records.attention import as_argument
from precheck.records.quantities import python_string
from precheck.render.parts.culprit import focus
from precheck.version import PROJECT_URL

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
        return shlex.join((*words, *report.options))
    dtypes = dict.fromkeys(run.dtype.value for run in report.runs)
    asked = dict.fromkeys(run.requested_attn_implementation for run in report.runs)
    devices = dict.fromkeys(run.device for run in report.runs)
    if dtypes:
        words += ["--dtype", ",".join(dtypes), "--attn", ",".join(asked), "--device", *devices]
    return shlex.join((*words, *report.options))


def reproduction(report: Report) -> str:
    """What to type to get the same report, a line for each command."""
    return "\n".join((*_install_command(report), scan_command(report)))


def _install_command(report: Report) -> Iterator[str]:
    """The versions that the scan ran with; local ones such as +cpu are another index's."""
    if not PROJECT_URL:
        return
    libraries = report.environment.libraries
    pinned = [
        f"{name}=={libraries[name].partition('+')[0]}"
        for name in _SAME_VERSIONS
        if name in libraries
    ]
    source = f"git+{PROJECT_URL}@v{report.precheck_version}"
    yield shlex.join(("pip", "install", source, *pinned))


def own_prompts(report: Report) -> int:
    """How many prompts of the user's own took part."""
    return sum(probe.is_own for probe in report.probes)


def plain_reproduction(report: Report) -> str | None:
    """Python that shows the failure with transformers alone; None unless every probe breaks."""
    at = focus(report)
    overflow = at.run.first_overflow if at else None
    if at is None or overflow is None or at.run.configuration.has_format:
        return None
    if len(overflow.probes) < len(report.probes):
        return None
    return "\n".join(_lines(report, dtype=at.run.dtype, attn=at.run.requested_attn_implementation))


def _lines(report: Report, *, dtype: str, attn: str) -> Iterator[str]:
    model = report.model
    revision = f", revision={python_string(model.revision)}" if model.revision else ""
    yield "import torch"
    yield f"from transformers import AutoTokenizer, {model.auto_class}"
    yield ""
    gguf = f", gguf_file={python_string(model.gguf_file)}" if model.gguf_file else ""
    yield f"name = {python_string(model.load_id)}"
    yield f"tokenizer = AutoTokenizer.from_pretrained(name{revision}{gguf})"
    yield f"model = {model.auto_class}.from_pretrained("
    attention = json.dumps(as_argument(attn))
    yield f"    name{revision}{gguf}, dtype=torch.{dtype}, attn_implementation={attention}"
    yield ")"
    yield 'inputs = tokenizer("The capital of France is", return_tensors="pt")'
    yield "with torch.no_grad():"
    yield "    print(model(**inputs).logits.isfinite().all())  # False"
