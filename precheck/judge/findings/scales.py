"""Findings on stored scales of weights and of inputs (PC610 to PC614, PC617).

What is wrong is in the files, so it is wrong wherever they are loaded. Scales of inputs are used by
engines alone: no run here multiplies in float8 or float4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.findings.checkpoint import checkpoint_error
from precheck.judge.thresholds import CLIPPED_RANGE, NARROW_RANGE, SUBNORMAL_SCALES
from precheck.records.finding import Confidence, Finding, Severity, module_pattern
from precheck.records.mechanism import Mechanism
from precheck.records.quantities import counted, listed, magnitude, percent
from precheck.records.stored import ScaleFaultKind, ScaleRole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.stored import InputRange, ScaleFault

_BROKEN_INPUTS = frozenset(
    {ScaleFaultKind.NOT_FINITE, ScaleFaultKind.ZERO, ScaleFaultKind.TOO_SMALL}
)
_CALIBRATE = (
    "Calibrate again, with every token through every expert (llm-compressor does so for the "
    "mixtures of experts that it knows), or give each of them its siblings' "
)
_NOT_FINITE = (
    "Quantise again with an exporter that saturates: a cast to float8_e4m3fn without "
    "a clamp stores NaN (bytes 0x7F and 0xFF) for what is beyond 448. For such a byte "
    "of NVFP4, 0x7E is what it would have stored."
)
_NOT_FINITE_IN_BLOCKS = (
    "Quantise again from the original: a block's scale is a float16, and infinite where its "
    "weights are too large for that. If those of the original are ordinary numbers, the file was "
    "damaged: download it again. llama.cpp looks for such blocks with --check-tensors."
)
_DEPENDS = "so that some prompts work and others fail"


def not_finite(evidence: Evidence) -> Iterator[Finding]:
    """Scales of weights or of the cache that are NaN or infinite."""
    faults = tuple(
        fault
        for fault in _of_kind(evidence, ScaleFaultKind.NOT_FINITE)
        if fault.role is not ScaleRole.INPUT
    )
    if faults:
        yield checkpoint_error(
            "PC610",
            names=_names(faults),
            message=(
                f"Scales are NaN or infinite: {_counted(faults)}. Every number that they scale is "
                "NaN, in every configuration and engine, and one is enough to fill the logits."
            ),
            advice=_NOT_FINITE_IN_BLOCKS if is_gguf(evidence) else _NOT_FINITE,
        )


def zero_or_negative(evidence: Evidence) -> Iterator[Finding]:
    """Scales that are zero, though what they scale is not, and those below zero."""
    audit = evidence.measurements.checkpoint
    zero = tuple(
        fault
        for fault in _of_kind(evidence, ScaleFaultKind.ZERO)
        if fault.role is not ScaleRole.INPUT and fault.weight not in audit.zero_scales
    )
    if zero:
        yield checkpoint_error(
            "PC611",
            names=_names(zero),
            message=(f"Scales are zero: {_counted(zero)}. What they scale is not, and is lost."),
            advice="Quantise the model again: no calibration produces such scales.",
        )
    negative = tuple(_of_kind(evidence, ScaleFaultKind.NEGATIVE))
    if negative:
        yield Finding(
            code="PC611",
            severity=Severity.WARNING,
            confidence=Confidence.MEASURED,
            module=negative[0].name,
            modules=_names(negative),
            message=(
                f"Scales are negative: {_counted(negative)}. A scale is a size; vLLM's Marlin "
                "kernels drop the sign of a block's, and it takes negative ones of the cache for "
                "none."
            ),
            advice="Quantise the model again, and let what is scaled carry the sign.",
        )


def broken_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Static scales of inputs that cannot be inverted: those of experts that saw no token."""
    faults = tuple(
        fault
        for kind in _BROKEN_INPUTS
        for fault in _of_kind(evidence, kind)
        if fault.role is ScaleRole.INPUT
    )
    if not faults:
        return
    names = tuple(sorted(_names(faults)))
    num_scales = sum(
        row.num_linears for row in evidence.measurements.checkpoint.scales.inputs
    ) + len(names)
    yield checkpoint_error(
        "PC612",
        names=names,
        message=(
            f"Static scales of inputs are unusable (zero, NaN, infinite, or too small for "
            f"float32): {len(names):,} of {num_scales:,} ({listed(names)}). Engines multiply by "
            f"the reciprocal, which is not finite: every token that gets there becomes NaN, "
            f"{_DEPENDS if _are_of_experts(names) else 'with every prompt'}."
        ),
        advice=(
            f"{_CALIBRATE}largest input_scale (smallest input_global_scale, which is a divisor)."
        ),
    )


def missing_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Static scales of inputs that some linears of a kind have, and others lack."""
    names = evidence.measurements.checkpoint.scales.missing
    if not names:
        return
    are_of_experts = _are_of_experts(names)
    yield Finding(
        code="PC613",
        severity=Severity.ERROR if are_of_experts else Severity.WARNING,
        confidence=Confidence.MEASURED,
        module=names[0],
        modules=names,
        message=(
            f"Static scales of inputs are missing: {counted(len(names), 'scale')} "
            f"({listed(names)}), while others of their kind are stored. vLLM loads a missing one "
            "as zero and multiplies by the reciprocal: tokens that get there become NaN, "
            f"{_DEPENDS if are_of_experts else 'with every prompt'}."
        ),
        advice=f"{_CALIBRATE}largest input_scale (smallest input_global_scale).",
    )


def subnormal_blocks(evidence: Evidence) -> Iterator[Finding]:
    """Block scales of NVFP4 that kernels for bfloat16 take for zero."""
    faults = tuple(
        fault
        for fault in _of_kind(evidence, ScaleFaultKind.SUBNORMAL)
        if fault.num_faulty >= SUBNORMAL_SCALES.value * fault.num_scales
    )
    if not faults:
        return
    share = sum(fault.num_faulty for fault in faults) / sum(fault.num_scales for fault in faults)
    yield Finding(
        code="PC614",
        severity=Severity.WARNING,
        confidence=Confidence.PREDICTED,
        module=faults[0].name,
        modules=_names(faults),
        message=(
            f"Block scales below 2^-6: {percent(share)} in {counted(len(faults), 'tensor')} "
            f"({listed(_names(faults))}), because the factor for the whole weight leaves them "
            "little of float8's range. They keep one to three bits, and Marlin kernels, which "
            "GPUs without float4 use, take them for zero in bfloat16: the output is garbled."
        ),
        advice=(
            "Multiply the block scales by the power of two that brings the largest to 448, and "
            "divide weight_scale_2 by it (or multiply weight_global_scale): no number changes. "
            "vLLM does so while it loads since https://github.com/vllm-project/vllm/pull/34577. "
            "Quantising again with a factor for each weight also keeps the bits."
        ),
    )


def misfitting_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Static scales that allow less than what was measured, or than those of other experts."""
    yield from _clipped_inputs(evidence)
    yield from _narrow_inputs(evidence)


def _narrow_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Experts whose static scale allows almost nothing, next to their siblings'."""
    rows = [
        row
        for row in evidence.measurements.checkpoint.scales.inputs
        if row.smallest < NARROW_RANGE.value * row.median
    ]
    if not rows:
        return
    worst = min(rows, key=lambda row: row.smallest / row.median)
    names = tuple(row.module for row in rows)
    yield Finding(
        code="PC617",
        severity=Severity.WARNING,
        confidence=Confidence.PREDICTED,
        module=worst.module,
        modules=names,
        message=(
            f"Static scales of inputs cut off what experts get: in {counted(len(rows), 'place')} "
            f"({listed(names)}). {worst.module} allows inputs up to {magnitude(worst.smallest)}, "
            f"half of its {worst.num_linears} siblings more than {magnitude(worst.median)}: "
            "calibration hardly reached it."
        ),
        advice=f"{_CALIBRATE}largest input_scale (smallest input_global_scale).",
    )


def _clipped_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Gated products larger than the static scale of the linear that reads them allows."""
    found = [
        (row, linear)
        for row in evidence.measurements.headroom
        if row.mechanism is Mechanism.GATED_PRODUCT
        if (linear := _reader(evidence, row.module)) is not None
        if row.abs_max > CLIPPED_RANGE.value * linear.largest
    ]
    if not found:
        return
    row, linear = max(found, key=lambda pair: pair[0].abs_max / pair[1].largest)
    names = tuple(dict.fromkeys(linear.module for _, linear in found))
    yield Finding(
        code="PC617",
        severity=Severity.WARNING,
        confidence=Confidence.PREDICTED,
        module=linear.module,
        modules=names,
        layer=row.layer,
        message=(
            f"Static scales of inputs do not fit what was measured: "
            f"{counted(len(names), 'linear')} ({listed(names)}). {linear.module} allows inputs up "
            f"to {magnitude(linear.largest)}; the largest is {magnitude(row.abs_max)}, "
            f"{row.mechanism.phrase} in {row.module}. What is larger is cut off, or becomes NaN "
            "where a kernel does not clamp."
        ),
        advice=(
            "Calibrate again on text like yours, with its chat template, or take a scheme whose "
            "scales of inputs are dynamic (FP8_DYNAMIC in llm-compressor)."
        ),
    )


def _reader(evidence: Evidence, module: str) -> InputRange | None:
    """The linear of a feed-forward block that reads the gated product: the one that narrows it.

    Known by its width alone: the others read the residual stream. None if that does not tell.
    """
    widths = evidence.measurements.model.widths
    linears = [
        linear
        for linear in evidence.measurements.checkpoint.scales.inputs
        if linear.module.startswith(f"{module}.")
        and widths is not None
        and linear.num_inputs not in {None, widths.hidden}
    ]
    return linears[0] if len(linears) == 1 else None


def is_gguf(evidence: Evidence) -> bool:
    """Whether the weights are those of a GGUF file."""
    return (evidence.measurements.model.quantization or {}).get("quant_method") == "gguf"


def _of_kind(evidence: Evidence, kind: ScaleFaultKind) -> Iterator[ScaleFault]:
    faults = evidence.measurements.checkpoint.scales.faults
    return (fault for fault in faults if fault.kind is kind)


def _names(faults: tuple[ScaleFault, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(fault.name for fault in faults))


def _counted(faults: tuple[ScaleFault, ...]) -> str:
    """How many numbers in how many tensors, and the first of these."""
    num_faulty = sum(fault.num_faulty for fault in faults)
    names = _names(faults)
    return f"{num_faulty:,} in {counted(len(names), 'tensor')} ({listed(names)})"


def _are_of_experts(names: tuple[str, ...]) -> bool:
    """Whether each belongs to a part that is repeated in its layer."""
    return all(module_pattern(name).count("*") > 1 for name in names)
