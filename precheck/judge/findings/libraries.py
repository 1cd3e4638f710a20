"""Findings on installed libraries that are known to break this kind of checkpoint (PC508)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.report import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFault:
    """A library with a known fault, from one version up to but not including another."""

    library: str
    below: str
    """The first version without the fault."""
    since: str = "0"
    concerns: Callable[[ModelFacts], bool]
    severity: Severity
    says: str
    advice: str
    source: str


def _is_gptq_without_biases(model: ModelFacts) -> bool:
    quantization = model.quantization or {}
    is_gptq = quantization.get("quant_method") == "gptq"
    return is_gptq and bool(quantization.get("num_linears_without_bias"))


def _is_any(_: ModelFacts) -> bool:
    return True


def _is_qwen_vl(model: ModelFacts) -> bool:
    return model.model_type in {"qwen2_vl", "qwen2_5_vl"}


def _is_gemma4(model: ModelFacts) -> bool:
    return model.model_type.startswith("gemma4")


KNOWN_FAULTS = (
    KnownFault(
        library="optimum",
        below="1.20.1",
        concerns=_is_gptq_without_biases,
        severity=Severity.ERROR,
        says=(
            "adds a randomly initialised bias to every GPTQ linear, even where the checkpoint has "
            "none: the outputs are garbage"
        ),
        advice="pip install -U optimum, or load with gptqmodel instead.",
        source="https://github.com/huggingface/optimum/pull/1827",
    ),
    KnownFault(
        library="torch",
        below="2.1.1",
        concerns=_is_any,
        severity=Severity.WARNING,
        says=(
            "is older than the version that transformers needs for sdpa, so eager attention is "
            "used silently, and its float16 scores overflow where sdpa's do not"
        ),
        advice="pip install -U torch; print model.config._attn_implementation to see what is used.",
        source="https://github.com/QwenLM/Qwen3/issues/884",
    ),
    KnownFault(
        library="torch",
        below="2.5",
        concerns=_is_any,
        severity=Severity.WARNING,
        says="produces NaN for fully masked rows in sdpa, so padded batches can break in any dtype",
        advice="pip install -U torch, or run without padding.",
        source="https://github.com/pytorch/pytorch/issues/103749",
    ),
    KnownFault(
        library="transformers",
        since="4.45",
        below="4.53",
        concerns=_is_qwen_vl,
        severity=Severity.WARNING,
        says=(
            "replaces infinite scores with 0 after the mask in float16 eager attention: no NaN, "
            "but tokens see future tokens"
        ),
        advice='Load with attn_implementation="sdpa", or pip install -U transformers.',
        source="https://github.com/huggingface/transformers/issues/35151",
    ),
    KnownFault(
        library="transformers",
        below="5.10.1",
        concerns=_is_gemma4,
        severity=Severity.WARNING,
        says="overflows in the vision pooler in float16: every answer to an image is <pad>",
        advice="pip install -U transformers.",
        source="https://github.com/huggingface/transformers/pull/46277",
    ),
    KnownFault(
        library="auto_gptq",
        below="9999",
        concerns=lambda model: (model.quantization or {}).get("quant_method") == "gptq",
        severity=Severity.WARNING,
        says="is no longer maintained, and its exllama v2 kernel accumulates in float16",
        advice="pip uninstall auto-gptq; gptqmodel and vLLM (Marlin) accumulate in float32.",
        source="https://github.com/QwenLM/Qwen3/issues/951",
    ),
)
"""In the order in which they are reported; each with where it is documented."""


def known_faults(evidence: Evidence) -> Iterator[Finding]:
    """Installed libraries that are known to break this kind of checkpoint."""
    model, libraries = evidence.measurements.model, evidence.measurements.environment.libraries
    runs_float16 = any(run.dtype is Dtype.FLOAT16 for run in evidence.runs)
    for fault in KNOWN_FAULTS:
        installed = libraries.get(fault.library)
        if installed is None or not runs_float16 or not fault.concerns(model):
            continue
        if not _is_between(installed, fault.since, fault.below):
            continue
        yield Finding(
            code="PC508",
            severity=fault.severity,
            confidence=Confidence.DOCUMENTED,
            message=f"{fault.library} {installed} {fault.says} ({fault.source}).",
            advice=fault.advice,
            in_vain="Another dtype or sampling setting does not help.",
        )


def _is_between(installed: str, since: str, below: str) -> bool:
    """Whether a version is affected; one that cannot be parsed counts as unaffected."""
    try:
        return Version(since) <= Version(installed) < Version(below)
    except InvalidVersion:
        return False
