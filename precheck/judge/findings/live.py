"""What is wrong with a live module, and would not be if it had been loaded right (PC520)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.loss import loss
from precheck.records.quantities import counted, listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence


def cast_as_a_whole(evidence: Evidence) -> Iterator[Finding]:
    """Buffers and parameters that loading keeps in float32, but that were cast with the rest."""
    measurements = evidence.measurements
    buffers = measurements.checkpoint.rounded_buffers
    parameters = measurements.checkpoint.rounded_parameters
    what = [
        f"{counted(len(names), kind)} ({listed(names)})"
        for names, kind in ((buffers, "buffer"), (parameters, "parameter"))
        if names
    ]
    if not what:
        return
    dtype = measurements.model.declared_dtype
    runs = [
        (index, run)
        for index, run in enumerate(evidence.runs)
        if run.dtype == dtype and not run.dtype.is_reference
    ]
    losses = [f"{run.name}: {figures}" for _, run in runs if (figures := loss(run).sentence)]
    yield Finding(
        code="PC520",
        severity=Severity.WARNING,
        confidence=Confidence.MEASURED,
        runs=tuple(index for index, _ in runs),
        message=(
            f"Rounded to 16 bits: {' and '.join(what)}. The module was cast as a whole after "
            f"loading; from_pretrained(dtype=torch.{dtype}) leaves them in float32."
            + (
                f" Loss against float32 with the exact values: {'; '.join(losses)}."
                if losses
                else ""
            )
        ),
        advice=(
            f"Load with from_pretrained(..., dtype=torch.{dtype}) instead of .to(torch.{dtype}) "
            'or .half(); device moves (.to("cuda")) are fine.'
        ),
    )
