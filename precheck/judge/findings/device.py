"""Findings on what a device or the installed software cannot do (PC4xx)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.engines import engine
from precheck.judge.devices.engines import engine_advice
from precheck.judge.devices.fit import does_not_fit, fit
from precheck.judge.devices.sdpa import MATH_KERNEL, falls_to_math
from precheck.judge.devices.standing import standing
from precheck.records.configuration import Configuration
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.precision import Dtype
from precheck.records.quantities import first_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence


def emulates_bfloat16(evidence: Evidence) -> Iterator[Finding]:
    """A checkpoint that declares bfloat16, meant for a GPU that only emulates it."""
    model = evidence.measurements.model
    if model.deploy_dtype != Dtype.BFLOAT16:
        return
    for device in evidence.devices:
        if not device.emulates_bfloat16:
            continue
        is_math = falls_to_math(device, Dtype.BFLOAT16, model.attention)
        math = f"; sdpa there uses {MATH_KERNEL}" if is_math else ""
        where = f" ({device.compute_capability})" if device.compute_capability else ""
        yield Finding(
            code="PC401",
            severity=Severity.NOTE,
            confidence=Confidence.DOCUMENTED,
            message=(
                f"The checkpoint declares bfloat16, which {device.name}{where} only emulates"
                f"{math}. torch.cuda.is_bf16_supported() returns True anyway."
            ),
            advice=(
                'Pass the recommended dtype instead of dtype="auto"; '
                "torch.cuda.is_bf16_supported(including_emulation=False) answers correctly."
            ),
        )


def unsafe_defaults(evidence: Evidence) -> Iterator[Finding]:
    """Engines that would run the model in a dtype that breaks it, if no flag names another."""
    for device in evidence.devices:
        if device.kind == "cpu":
            continue
        for advice in engine_advice(evidence, device=device, recommended=None):
            is_transformers = advice.engine == engine("transformers").name
            if advice.is_default_safe is not False or is_transformers:
                continue
            yield Finding(
                code="PC403",
                severity=Severity.WARNING,
                confidence=Confidence.PREDICTED,
                message=f"{advice.engine} {advice.version} on {device.name}: {advice.default}.",
                advice=f"Run: {advice.command}"
                if advice.command
                else f"{advice.why[0].upper()}{advice.why[1:]}.",
            )


def too_large(evidence: Evidence) -> Iterator[Finding]:
    """A checkpoint that does not fit into a device's memory as it would be loaded."""
    dtype = evidence.measurements.model.deploy_dtype
    if dtype not in set(Dtype):
        return
    for device in evidence.devices:
        memory = fit(evidence.measurements, device=device, dtype=Dtype(dtype))
        why = does_not_fit(memory)
        if why is None:
            continue
        halves = _halves_that_fit(evidence, device) if Dtype(dtype).is_reference else ()
        yield Finding(
            code="PC404",
            severity=Severity.WARNING,
            confidence=Confidence.PREDICTED,
            message=f"In {dtype} it {why} on {device.name}.",
            advice=(
                f"Load it in {' or '.join(halves)}."
                if halves
                else "Use a quantised checkpoint or a larger device, or split the model across "
                'several (device_map="auto", --tensor-parallel-size).'
            ),
        )


def _halves_that_fit(evidence: Evidence, device: Hardware) -> tuple[Dtype, ...]:
    """The 16-bit dtypes that the device supports, that have no known problem, and that fit."""
    attn = evidence.measurements.model.default_attn_implementation or ""
    return tuple(
        dtype
        for dtype in Dtype
        if dtype.is_half
        and fit(evidence.measurements, device=device, dtype=dtype).fits
        and standing(
            evidence, Configuration(dtype=dtype, attn_implementation=attn), device=device
        ).may_be_advised
    )


def assumed(evidence: Evidence) -> Iterator[Finding]:
    """Devices that the table does not know, or not exactly, and what is assumed about them."""
    for device in evidence.devices:
        for assumption in device.assumptions:
            yield Finding(
                code="PC405",
                severity=Severity.NOTE,
                confidence=Confidence.PREDICTED,
                message=f"{assumption}.",
                advice="precheck gpus lists the known devices, with sources.",
            )


def could_not_run(evidence: Evidence) -> Iterator[Finding]:
    """Configurations that were requested and could not be run."""
    reasons: dict[str, list[int]] = {}
    for index, run in enumerate(evidence.runs):
        if run.failure is not None and run.is_finished:
            reasons.setdefault(run.failure, []).append(index)
    for failure, runs in reasons.items():
        names = ", ".join(
            f"{evidence.runs[index].dtype} + {evidence.runs[index].requested_attn_implementation}"
            for index in runs
        )
        yield Finding(
            code="PC402",
            severity=Severity.WARNING,
            confidence=Confidence.MEASURED,
            runs=tuple(runs),
            message=f"{names} could not be run: {first_sentence(failure)}.",
            advice="Use a configuration that was measured; nothing is known about this one.",
        )
