"""Findings on the scan itself: what it did not reach (PC9xx)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.quantities import listed
from precheck.records.traces import ALL_MEDIA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence


def incomplete(evidence: Evidence) -> Iterator[Finding]:
    """A scan that ended before everything it set out to measure was measured."""
    if not evidence.measurements.complete:
        reason = evidence.measurements.incomplete_reason or "it ended early"
        yield Finding(
            code="PC901",
            severity=Severity.WARNING,
            confidence=Confidence.MEASURED,
            message=(
                f"The scan is incomplete: {reason.rstrip('.')}. What is missing from this "
                "report was not measured; do not take it for safe."
            ),
            advice=(
                "Scan again; --quick runs one short batch, --dtype and --attn fewer configurations."
            ),
        )


def probes_not_run(evidence: Evidence) -> Iterator[Finding]:
    """Probes that do not fit this model or its tokenizer; a tower not run is a warning."""
    names = evidence.measurements.coverage.probes_not_run
    if not names:
        return
    unseen = any(name.startswith(ALL_MEDIA) for name in names)
    yield Finding(
        code="PC902",
        severity=Severity.WARNING if unseen else Severity.NOTE,
        confidence=Confidence.MEASURED,
        probes=names,
        message=f"Not run: {listed(names)}."
        + (" The verdicts apply to text only." if unseen else ""),
        advice=(
            "Put the processor's files next to the weights and scan again."
            if unseen
            else "Pass your own prompts (--prompts) if these matter to you."
        ),
    )


def run_one_by_one(evidence: Evidence) -> Iterator[Finding]:
    """A model that fails with several prompts at once, but not with each one."""
    reason = evidence.measurements.coverage.row_by_row
    if reason is None:
        return
    lacks_padding = "padding token" in reason or "pad_token" in reason
    yield Finding(
        code="PC904",
        severity=Severity.WARNING,
        confidence=Confidence.MEASURED,
        message=(
            f"Batches of several prompts fail in every dtype: {reason.rstrip('.')}. Each prompt "
            "was run on its own; padding was not tested."
            + (" pad_token_id is missing." if lacks_padding else "")
        ),
        advice=(
            "Set pad_token_id in config.json to the tokenizer's padding id and scan again before "
            "you serve batches."
            if lacks_padding
            else "Fix what the message names before you serve batches."
        ),
    )
