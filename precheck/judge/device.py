"""Findings on what a device or the installed software cannot do (PC4xx)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.hardware import Bfloat16
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.precision import Dtype
from precheck.records.quantities import first_sentence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence


def emulates_bfloat16(evidence: Evidence) -> Iterator[Finding]:
    """A checkpoint that declares bfloat16, meant for a GPU that only emulates it."""
    if evidence.measurements.model.deploy_dtype != Dtype.BFLOAT16:
        return
    for device in evidence.devices:
        if device.bfloat16 is Bfloat16.EMULATED:
            yield Finding(
                code="PC401",
                severity=Severity.NOTE,
                confidence=Confidence.DOCUMENTED,
                message=(
                    f"The checkpoint declares bfloat16, which {device.name} "
                    f"({device.compute_capability}) only emulates; sdpa there uses "
                    f"{device.sdpa_bfloat16}. torch.cuda.is_bf16_supported() says True "
                    "all the same."
                ),
                advice=(
                    'Pass the recommended dtype instead of dtype="auto"; '
                    "torch.cuda.is_bf16_supported(including_emulation=False) tells the truth."
                ),
            )


def could_not_run(evidence: Evidence) -> Iterator[Finding]:
    """Configurations that were asked for and could not be run."""
    reasons: dict[str, list[int]] = {}
    for index, run in enumerate(evidence.runs):
        if run.failure is not None:
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
