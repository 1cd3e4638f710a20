"""Findings on the scan itself: what it did not get to (PC9xx)."""

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
                f"The scan is incomplete: {reason.rstrip('.')}. What is not in this report was "
                "not measured, and is not known to be fine."
            ),
            advice="Scan again; --quick takes one short batch, --dtype and --attn fewer runs.",
        )


def probes_not_run(evidence: Evidence) -> Iterator[Finding]:
    """Probes that this model or its tokenizer had no use for; a tower not run is a warning."""
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
        + (" The verdicts hold for text alone." if unseen else ""),
        advice=(
            "Put the processor's files beside the weights, and scan again."
            if unseen
            else "Give prompts of your own (--prompts) if these matter to you."
        ),
    )


def run_one_by_one(evidence: Evidence) -> Iterator[Finding]:
    """A model that fails with several prompts at once, and not with each of them."""
    reason = evidence.measurements.coverage.row_by_row
    if reason is None:
        return
    lacks_padding = "padding token" in reason or "pad_token" in reason
    yield Finding(
        code="PC904",
        severity=Severity.WARNING,
        confidence=Confidence.MEASURED,
        message=(
            f"Batches of several prompts fail in every dtype: {reason.rstrip('.')}. Every prompt "
            "was run by itself; nothing is known of padding."
            + (" What is missing is pad_token_id." if lacks_padding else "")
        ),
        advice=(
            "Set pad_token_id in config.json to the id that the tokenizer pads with, and scan "
            "again, before batches are served."
            if lacks_padding
            else "Mend what the message names before batches are served."
        ),
    )
