"""Findings on accuracy that is lost without any NaN (PC2xx)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from precheck.judge.thresholds import (
    DEGRADED_KL_DIVERGENCE,
    DEGRADED_RELATIVE_ERROR,
    FLUSHED_SHARE,
    SUBNORMAL_SHARE,
)
from precheck.records.finding import USABLE, Confidence, Finding, Severity, Verdict
from precheck.records.loss import loss, relative_error
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.quantities import listed, magnitude, percent
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.report import Run
    from precheck.records.traces import LayerTrace


def degraded(evidence: Evidence) -> Iterator[Finding]:
    """Runs that answer in numbers, but not in the reference's."""
    for index, run in evidence.with_verdict(Verdict.DEGRADED):
        layer = _where_it_starts(run)
        start = (
            f" It starts in {layer.section} layer {layer.index} ({layer.module})." if layer else ""
        )
        yield Finding(
            code="PC201",
            severity=Severity.ERROR,
            confidence=Confidence.MEASURED,
            runs=(index,),
            layer=layer.index if layer else None,
            section=layer.section if layer else None,
            module=layer.module if layer else None,
            message=(
                f"{run.name} loses accuracy although every value is finite: {_figures(run)}."
                f"{start}{_coarse_scores(evidence, run)}"
            ),
            advice=_better(evidence, run),
            in_vain="Looking for NaN does not find this, and no sampling setting mends it.",
        )


def _figures(run: Run) -> str:
    """The measured loss next to what is tolerated."""
    tolerated = f"{DEGRADED_KL_DIVERGENCE.value} nat, {percent(DEGRADED_RELATIVE_ERROR.value)}"
    figures = [f"{loss(run).sentence} (tolerated: {tolerated})"]
    logits = run.logits
    if logits is not None and logits.top1_agreement is not None:
        figures.append(f"the same first choice for {percent(logits.top1_agreement)} of the tokens")
    if logits is not None and logits.perplexity and logits.reference_perplexity:
        figures.append(
            f"perplexity {magnitude(logits.perplexity)} against "
            f"{magnitude(logits.reference_perplexity)}"
        )
    return ", ".join(figures)


def _where_it_starts(run: Run) -> LayerTrace | None:
    """The layer whose relative error grew most over the layer before it, in its own section."""
    growth = [
        (error_after - error_before, after)
        for before, after in pairwise(run.layers)
        if before.section is after.section
        and (error_before := relative_error(before)) is not None
        and (error_after := relative_error(after)) is not None
    ]
    largest = max(growth, key=lambda pair: pair[0], default=None)
    return largest[1] if largest and largest[0] > 0 else None


def _coarse_scores(evidence: Evidence, run: Run) -> str:
    """Why eager attention loses digits where a fused kernel does not, if that is the case."""
    rows = [
        row for row in evidence.measurements.headroom if row.mechanism is Mechanism.ATTENTION_SCORES
    ]
    tight = tightest(rows, run.configuration)
    if tight is None or run.attn_implementation != "eager" or not _usable_siblings(evidence, run):
        return ""
    abs_max = tight[0].abs_max
    step = 2.0 ** math.floor(math.log2(abs_max)) * run.dtype.limits.eps
    return (
        f" Eager attention writes {Mechanism.ATTENTION_SCORES.phrase} in {run.dtype}: they reach "
        f"{magnitude(abs_max)}, where neighbouring values are {magnitude(step)} apart."
    )


def _usable_siblings(evidence: Evidence, run: Run) -> tuple[str, ...]:
    """Other attention implementations that are fine in the same dtype."""
    return tuple(
        other.attn_implementation
        for other in evidence.runs
        if other.dtype is run.dtype and other.verdict in USABLE
    )


def _better(evidence: Evidence, run: Run) -> str:
    siblings = _usable_siblings(evidence, run)
    if siblings:
        return f'Load with attn_implementation="{siblings[0]}", which is fine in {run.dtype}.'
    safe = evidence.safe_names()
    return f"Use {listed(safe)}, measured safe here." if safe else "Use float32."


def unjudged(evidence: Evidence) -> Iterator[Finding]:
    """Mixtures of experts in which no token took the reference's way: nothing to compare."""
    runs = tuple(
        index
        for index, run in evidence.with_verdict(*USABLE)
        if not run.configuration.is_reference
        and any(layer.routing_agreement is not None for layer in run.layers)
        and loss(run) == (None, None)
    )
    if not runs:
        return
    lowest = min(
        layer.routing_agreement
        for index in runs
        for layer in evidence.runs[index].layers
        if layer.routing_agreement is not None
    )
    yield Finding(
        code="PC203",
        severity=Severity.NOTE,
        confidence=Confidence.MEASURED,
        runs=runs,
        message=(
            "The precision of a mixture of experts could not be judged: every token, or one it "
            f"attends to, went to other experts than in float32 in some layer (at worst "
            f"{percent(lowest)} of the tokens agreed). Rounding near a tie does that, and it is "
            "no fault by itself."
        ),
        advice="Compare the runs on a benchmark of your own; the range was judged as usual.",
    )


def flushed_weights(evidence: Evidence) -> Iterator[Finding]:
    """Stored weights too small for float16: zero, or with few digits left."""
    audit = evidence.measurements.checkpoint
    if not audit.num_elements:
        return
    zero = audit.num_float16_zero / audit.num_elements
    subnormal = audit.num_float16_subnormal / audit.num_elements
    if zero <= FLUSHED_SHARE.value and subnormal <= SUBNORMAL_SHARE.value:
        return
    runs = tuple(index for index, run in enumerate(evidence.runs) if run.dtype is Dtype.FLOAT16)
    is_degraded = any(evidence.runs[index].verdict is Verdict.DEGRADED for index in runs)
    yield Finding(
        code="PC202",
        severity=Severity.WARNING if is_degraded else Severity.NOTE,
        confidence=Confidence.MEASURED,
        runs=runs,
        message=(
            f"In float16 {percent(zero)} of the stored weights become zero and "
            f"{percent(subnormal)} become subnormal, with fewer digits than float16 promises."
        ),
        advice=(
            "Use bfloat16 or float32: a float16 run here is degraded."
            if is_degraded
            else "Nothing to do: the float16 runs show what it costs, and none is degraded."
        ),
    )
