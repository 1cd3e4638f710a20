"""Findings on formats of the key-value cache and of weights (PC6xx)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from precheck.judge.thresholds import DEGRADED_FORMAT_KL_DIVERGENCE
from precheck.records.finding import USABLE, Confidence, Finding, Severity, Verdict
from precheck.records.loss import loss
from precheck.records.quantities import listed, nats, percent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.report import Run

_WRITTEN = {"kv_cache_dtype": "kv:", "quantization": "q:"}
_LOST = frozenset({Verdict.DEGRADED, Verdict.OVERFLOW})


def _costs_accuracy(evidence: Evidence, *, code: str, field: str) -> Iterator[Finding]:
    """Runs with a format that lose what the same run without it keeps."""
    for index, run in evidence.with_formats:
        plain = evidence.without_formats(run)
        is_usable = plain is not None and plain.verdict in USABLE
        if run.verdict not in _LOST or not is_usable or getattr(run, field) is None:
            continue
        yield Finding(
            code=code,
            severity=Severity.ERROR,
            confidence=Confidence.MEASURED,
            runs=(index,),
            op=f"{_WRITTEN[field]}{getattr(run, field)}",  # a baseline accepts one, not all
            message=f"{run.name} {_what(run)}.",
            advice=_instead(evidence, run, field=field),
        )


cache_costs_accuracy = partial(_costs_accuracy, code="PC602", field="kv_cache_dtype")
weights_cost_accuracy = partial(_costs_accuracy, code="PC603", field="quantization")


def _what(run: Run) -> str:
    if run.verdict is Verdict.OVERFLOW:
        return f"is not finite: {run.reason}"
    limit = f"tolerated: {DEGRADED_FORMAT_KL_DIVERGENCE.value}"
    figures = loss(run)
    if figures.kl_divergence is None:
        return f"loses accuracy: {figures.sentence}"
    words = f"loses accuracy: KL {nats(figures.kl_divergence)} nat ({limit})"
    if run.format_loss is not None and run.format_loss.kl_divergence is not None:
        words += f", {nats(run.format_loss.kl_divergence)} of it against {run.dtype} without it"
    if run.logits is not None and run.logits.top1_agreement is not None:
        words += f"; {percent(1 - run.logits.top1_agreement)} of the first choices change"
    return words


def _instead(evidence: Evidence, run: Run, *, field: str) -> str:
    """The formats that were measured usable beside it, the closest first."""
    others = [
        (loss(other).kl_divergence or 0.0, getattr(other, field))
        for _, other in evidence.with_formats
        if other.verdict in USABLE
        and other.configuration.without_formats == run.configuration.without_formats
        and getattr(other, field) is not None
    ]
    usable = tuple(name for _, name in sorted(others))
    if usable:
        return f"Use {listed(usable)}, measured usable here, or none."
    return "Leave the cache in the dtype (auto)." if field == "kv_cache_dtype" else "Use none."
