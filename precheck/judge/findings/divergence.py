"""Findings on accuracy that is lost without any NaN (PC2xx)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precheck.judge.findings.cures import another_dtype, measured_safe, on_every_device
from precheck.judge.thresholds import (
    COARSE_STEP,
    DEGRADED_KL_DIVERGENCE,
    DEGRADED_RELATIVE_ERROR,
    DEGRADED_SCORES,
    FLUSHED_SHARE,
    SUBNORMAL_SHARE,
)
from precheck.records.answers import AnswerKind
from precheck.records.finding import USABLE, Confidence, Finding, Severity, Verdict
from precheck.records.loss import loss, relative_error
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.quantities import counted, listed, magnitude, nats, percent
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.report import Run
    from precheck.records.traces import LayerTrace


_ADDS_BIASES = frozenset({"aten.baddbmm", "aten.add"})


def degraded(evidence: Evidence) -> Iterator[Finding]:
    """Runs whose output is finite, but far from the reference's."""
    for index, run in evidence.with_verdict(Verdict.DEGRADED):
        is_in_the_score = _is_in_the_score(run)
        layer = None if is_in_the_score else _where_it_starts(run)
        start = _coarse_answer(run) if is_in_the_score else ""
        if layer is not None:
            start = f" It starts in {layer.section} layer {layer.index} ({layer.module})."
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
            advice=f"{_better(evidence, run)}{_after_the_scores(run)}",
            in_vain=_in_vain(evidence),
        )


def _in_vain(evidence: Evidence) -> str:
    if evidence.measurements.model.generates:
        return "NaN checks miss this, and no sampling setting fixes it."
    return "NaN checks miss this."


def _figures(run: Run) -> str:
    """The measured loss next to what is tolerated."""
    figures = loss(run)
    tolerated = []
    if run.answers is not None and run.answers.kind is AnswerKind.SCORES:
        tolerated.append(percent(DEGRADED_SCORES.value))
    if figures.kl_divergence is not None:
        tolerated.append(f"{DEGRADED_KL_DIVERGENCE.value} nat")
    tolerated.append(percent(DEGRADED_RELATIVE_ERROR.value))
    return ", ".join([f"{figures.sentence} (tolerated: {', '.join(tolerated)})", *_choices(run)])


def _choices(run: Run) -> list[str]:
    """What it does to the model's predictions."""
    figures = []
    logits = run.logits
    if logits is not None and logits.top1_agreement is not None:
        figures.append(f"top-1 agreement {percent(logits.top1_agreement)}")
    if logits is not None and logits.perplexity and logits.reference_perplexity:
        figures.append(
            f"perplexity {magnitude(logits.perplexity)} "
            f"(float32: {magnitude(logits.reference_perplexity)})"
        )
    return figures


def _is_in_the_score(run: Run) -> bool:
    """Whether the layers are close enough, and only the scores are rounded too coarsely."""
    figures = loss(run)
    is_of_layers = (figures.relative_error or 0.0) > DEGRADED_RELATIVE_ERROR.value
    return bool(figures.answers) and figures.kl_divergence is None and not is_of_layers


def _coarse_answer(run: Run) -> str:
    abs_max = run.logits.abs_max if run.logits else None
    if not abs_max:
        return ""
    return (
        f" The layers are fine: scores reach {magnitude(abs_max)}, where adjacent "
        f"{run.dtype} values are {magnitude(_step(abs_max, run.dtype))} apart."
    )


def _step(value: float, dtype: Dtype) -> float:
    """The distance between adjacent values of a dtype around a value."""
    return float(2.0 ** math.floor(math.log2(value)) * dtype.limits.eps)


def _where_it_starts(run: Run) -> LayerTrace | None:
    """The layer that adds most to the relative error, up to the first that is past tolerance.

    The first layer of each section adds all of its own.
    """
    known = [(layer, error) for layer in run.layers if (error := relative_error(layer)) is not None]
    growth: list[tuple[float, LayerTrace]] = []
    before: LayerTrace | None = None
    error_before = 0.0
    for layer, error in known:
        is_next = before is not None and before.section is layer.section
        growth.append((error - error_before if is_next else error, layer))
        before, error_before = layer, error
        if error > DEGRADED_RELATIVE_ERROR.value:
            break
    largest = max(growth, key=lambda pair: pair[0], default=None)
    return largest[1] if largest and largest[0] > 0 else None


def _coarse_scores(evidence: Evidence, run: Run) -> str:
    """Why eager attention loses digits: it materialises scores, and biases added to them."""
    rows = [
        row for row in evidence.measurements.headroom if row.mechanism is Mechanism.ATTENTION_SCORES
    ]
    tight = tightest(rows, run.configuration)
    if tight is None or run.attn_implementation != "eager":
        return ""
    row, abs_max = tight[0], tight[0].abs_max
    step = _step(abs_max, run.dtype)
    if step < COARSE_STEP.value and not _usable_siblings(evidence, run):
        return ""
    biases = ", with the biases added" if row.op in _ADDS_BIASES else ""
    return (
        f" Eager attention materialises {Mechanism.ATTENTION_SCORES.phrase} in {run.dtype}"
        f"{biases}: they reach {magnitude(abs_max)}, where adjacent values are "
        f"{magnitude(step)} apart."
    )


def _usable_siblings(evidence: Evidence, run: Run) -> tuple[str, ...]:
    """Other attention implementations that are fine in the same dtype."""
    return tuple(
        other.attn_implementation
        for other in evidence.runs
        if other.dtype is run.dtype
        and other.verdict in USABLE
        and not other.configuration.has_format
    )


def _better(evidence: Evidence, run: Run) -> str:
    siblings = [
        attn
        for attn in _usable_siblings(evidence, run)
        if on_every_device(evidence, run.configuration.with_attention(attn))
    ]
    if siblings:
        return f'Load with attn_implementation="{siblings[0]}", which is fine in {run.dtype}.'
    safe = measured_safe(evidence)
    return f"Use {listed(safe)}, measured safe here." if safe else "Use float32."


def lost_on_odd_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Runs that keep their accuracy on ordinary inputs, but not on every probe."""
    elsewhere = {
        probe.name
        for probe in evidence.measurements.probes
        if probe.is_judged_alone or probe.is_for_range
    }
    lost = [
        (divergence, index, probe)
        for index, run in evidence.with_verdict(*USABLE)
        if run.logits is not None and not run.configuration.is_reference
        for probe, divergence in run.logits.kl_by_probe.items()
        if divergence is not None
        and divergence > DEGRADED_KL_DIVERGENCE.value
        and probe not in elsewhere
    ]
    if not lost:
        return
    lost.sort(key=lambda entry: -entry[0])
    runs = tuple(sorted({index for _, index, _ in lost}))
    probes = tuple(dict.fromkeys(probe for _, _, probe in lost))
    largest, worst, probe = lost[0]
    ordinary = max(loss(evidence.runs[index]).kl_divergence or 0.0 for index in runs)
    names = tuple(evidence.runs[index].name for index in runs)
    others = f"; also affected: {listed(probes[1:])}" if probes[1:] else ""
    yield Finding(
        code="PC204",
        severity=Severity.WARNING,
        confidence=Confidence.MEASURED,
        runs=runs,
        probes=probes,
        message=(
            f"{listed(names)}: accuracy is lost on {counted(len(probes), 'odd probe')}, but not on "
            f"ordinary inputs (typical KL at most {nats(ordinary)} nat). Worst: {probe}, with "
            f"{nats(largest)} nat in {evidence.runs[worst].name} (tolerated: "
            f"{DEGRADED_KL_DIVERGENCE.value}){others}."
        ),
        advice="If your prompts look like these, scan with them (--prompts): they count in full.",
    )


def _after_the_scores(run: Run) -> str:
    """What follows the model's head makes ties too: at 9, a sigmoid in 16 bits is 1."""
    if run.answers is None or run.answers.kind is not AnswerKind.SCORES:
        return ""
    return " Compute the sigmoid or softmax of the scores in float32, or sort by the raw scores."


def unjudged(evidence: Evidence) -> Iterator[Finding]:
    """Mixtures of experts in which no token kept the reference's experts: nothing to compare."""
    runs = tuple(
        index
        for index, run in evidence.with_verdict(*USABLE)
        if not run.configuration.is_reference
        and any(layer.routing_agreement is not None for layer in run.layers)
        and loss(run).is_unknown
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
            "The precision of this mixture of experts could not be judged: in some layer, every "
            "token, or one it attends to, was routed to other experts than in float32 (at worst "
            f"{percent(lowest)} of the tokens agreed). Rounding near a tie causes this; it is not "
            "a fault in itself."
        ),
        advice="Compare the runs on your own benchmark; the range was judged as usual.",
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
            f"{percent(subnormal)} become subnormal, with fewer digits than normal float16 values."
        ),
        advice=(
            f"Use {another_dtype(evidence, evidence.runs[runs[0]].configuration)}: a float16 run "
            "here is degraded."
            if is_degraded
            else "Nothing to do: the float16 runs include this loss, and none is degraded."
        ),
    )
