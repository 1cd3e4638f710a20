"""Findings on formats of the key-value cache and of weights (PC6xx)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from precheck.judge.thresholds import DEGRADED_FORMAT_KL_DIVERGENCE, LOST_IN_ONE_PART
from precheck.records.finding import USABLE, Confidence, Finding, Severity, Verdict
from precheck.records.loss import loss
from precheck.records.quantities import counted, listed, nats, percent
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.format_loss import FormatCulprits, FormatPart
    from precheck.records.report import Run

_WRITTEN = {"kv_cache_dtype": "kv:", "quantization": "q:"}
_MOST_NAMES = 6


def spread_loss(evidence: Evidence) -> Iterator[Finding]:
    """Runs that lose a good part of what is tolerable, in all layers alike: a format's price."""
    for index, run in evidence.with_verdict(*USABLE, has_format=True):
        lost = loss(run).kl_divergence
        if lost is None or lost <= LOST_IN_ONE_PART.value:
            continue
        yield Finding(
            code="PC605",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            runs=(index,),
            message=(
                f"{run.name} costs {_figures(run)}. No part loses most of it: that is what this"
                " format costs this model, not a fault of one layer."
            ),
            advice="Compare with your own benchmark; a format with more bits costs less.",
        )


def _costs_accuracy(evidence: Evidence, *, code: str, field: str) -> Iterator[Finding]:
    """Runs with a format that lose what the same run without it keeps."""
    for index, run in evidence.with_verdict(Verdict.DEGRADED, has_format=True):
        plain = evidence.without_formats(run)
        if plain is None or plain.verdict not in USABLE or getattr(run, field) is None:
            continue
        culprits = run.format_culprits
        first = culprits.parts[0] if culprits is not None and culprits.parts else None
        yield Finding(
            code=code,
            severity=Severity.ERROR,
            confidence=Confidence.MEASURED,
            runs=(index,),
            layer=None if first is None else first.layer,
            section=None if first is None else Section.DECODER,
            module=None if first is None else first.part.split(" ")[0],
            op=f"{_WRITTEN[field]}{getattr(run, field)}",  # a baseline accepts one, not all
            message=f"{run.name} loses accuracy: {_figures(run)}.{_where(culprits)}",
            advice=f"{_left_out(culprits)}{_instead(evidence, run, field=field)}",
            in_vain=_in_vain(first) if field == "kv_cache_dtype" else "",
        )


cache_costs_accuracy = partial(_costs_accuracy, code="PC602", field="kv_cache_dtype")
weights_cost_accuracy = partial(_costs_accuracy, code="PC603", field="quantization")


def _figures(run: Run) -> str:
    figures = loss(run)
    if figures.kl_divergence is None:
        return figures.sentence
    is_one_part = run.format_culprits is not None and run.format_culprits.are_one_part
    limit = LOST_IN_ONE_PART if is_one_part else DEGRADED_FORMAT_KL_DIVERGENCE
    words = f"KL {nats(figures.kl_divergence)} nat (tolerated: {limit.value})"
    if run.format_loss is not None and run.format_loss.kl_divergence is not None:
        words += f", {nats(run.format_loss.kl_divergence)} against the run without the format"
    if run.logits is not None and run.logits.top1_agreement is not None:
        words += f"; {percent(1 - run.logits.top1_agreement)} of the first choices change"
    return words


def _where(culprits: FormatCulprits | None) -> str:
    """Which part loses most, by itself, and why."""
    if culprits is None:
        return ""
    if not culprits.parts:
        return " No part loses much of it alone."
    first, *others = culprits.parts
    words = (
        f" Stored alone, {first.part} lose {nats(first.kl_divergence)} nat: {first.size};"
        f" {first.loss}."
    )
    if others:
        words += f" So do {counted(len(others), 'other part')}, less."
    return words + _prompt(culprits)


def _prompt(culprits: FormatCulprits) -> str:
    """What an engine loses whose prompt attends to keys and values that are not stored yet."""
    unstored, stored = culprits.after_unstored_prompt, culprits.after_stored_prompt
    if unstored is None or stored is None:
        return ""
    return (
        f" Where a prompt attends to keys and values before they are stored, what follows it loses"
        f" {nats(unstored)} nat, else {nats(stored)}."
    )


def _left_out(culprits: FormatCulprits | None) -> str:
    if culprits is None or culprits.kl_divergence_left_out is None:
        return ""
    numbers = [name.rpartition(".")[2] for name in culprits.left_out]
    flag = ""
    if culprits.keys_alone is not None and all(number.isdigit() for number in numbers):
        flag = f" (vLLM: --kv-cache-dtype-skip-layers {' '.join(numbers)})"
    return (
        f"Leave {listed(culprits.left_out, most=_MOST_NAMES)} in the dtype{flag}: "
        f"{nats(culprits.kl_divergence_left_out)} nat, measured. "
    )


def _instead(evidence: Evidence, run: Run, *, field: str) -> str:
    """The formats that were measured usable beside it, the closest first."""
    others = [
        (loss(other).kl_divergence or 0.0, getattr(other, field))
        for _, other in evidence.with_verdict(*USABLE, has_format=True)
        if other.configuration.without_formats == run.configuration.without_formats
        and getattr(other, field) is not None
    ]
    usable = tuple(name for _, name in sorted(others))
    if usable:
        return f"Or use {listed(usable)}, measured usable here, or none."
    return (
        "Or leave the cache in the dtype (auto)." if field == "kv_cache_dtype" else "Or use none."
    )


def _in_vain(first: FormatPart | None) -> str:
    if first is None or first.clipped_share:
        return ""
    return "A calibrated scale: nothing is clipped, and steps stay as coarse as they are."
