"""Findings on what was not run: what is documented for the family, what a scan would add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.families import FamilyFact, facts_on
from precheck.records.finding import USABLE, Confidence, Finding, Severity
from precheck.records.quantities import counted, num_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence


def documented(evidence: Evidence) -> Iterator[Finding]:
    """What is documented for the family and was not run; a measurement supersedes it.

    What is documented for images counts as not run where no image was.
    """
    model = evidence.measurements.model
    ran = {run.dtype for run in evidence.runs if run.failure is None}
    kinds = {probe.kind for probe in evidence.measurements.probes}
    for fact in facts_on(model.model_type):
        if fact.dtype in ran and fact.inputs in {None, *kinds}:
            continue
        with_inputs = f" with an {fact.inputs}" if fact.inputs else ""
        with_attention = f" + {fact.attention}" if fact.attention else ""
        yield Finding(
            code="PC116",
            severity=_severity(fact, evidence),
            confidence=Confidence.DOCUMENTED,
            message=(
                f"{fact.dtype}{with_attention}: {fact.fact}. Seen on {fact.checkpoints}; this "
                f"checkpoint was not run in {fact.dtype}{with_inputs} ({', '.join(fact.links)})."
            ),
            advice=f"Measure it{with_inputs}: precheck scan {model.id} --dtype {fact.dtype}",
        )


def _severity(fact: FamilyFact, evidence: Evidence) -> Severity:
    """An error where it is what a plain ``from_pretrained(dtype="auto")`` would run."""
    model = evidence.measurements.model
    if fact.effect in USABLE:
        return Severity.NOTE
    is_deployed = fact.dtype == model.deploy_dtype and fact.attention in {
        None,
        model.default_attn_implementation,
    }
    return Severity.ERROR if is_deployed and evidence.measurements.is_static else Severity.WARNING


def nothing_was_run(evidence: Evidence) -> Iterator[Finding]:
    """A static answer says what it is not."""
    if not evidence.measurements.is_static:
        return
    model = evidence.measurements.model
    yield Finding(
        code="PC903",
        severity=Severity.NOTE,
        confidence=Confidence.MEASURED,
        message=(
            f"Nothing was run: config, headers and {_read(evidence)} were read; the rest is "
            "documented or predicted. This checkpoint's overflows, headroom and precision are not "
            f"known.{_unread(evidence)}{_not_followed(evidence)}"
        ),
        advice=(
            f"precheck scan {model.id} measures every operation in float16, bfloat16 and float32 "
            "and names the first that overflows."
            + (
                ""
                if evidence.measurements.checkpoint.small is None
                else f" precheck scan {model.id} --static --full reads all weights, and runs "
                "nothing."
            )
        ),
    )


def _read(evidence: Evidence) -> str:
    """What was read of the weights."""
    checkpoint = evidence.measurements.checkpoint
    small = checkpoint.small
    if small is None:
        return "weights"
    read = (
        f"{small.num_tensors:,} small tensors of {small.num_stored:,} "
        f"({num_bytes(small.num_bytes)} of {num_bytes(checkpoint.size_bytes)}"
    )
    if small.requests is None or small.received_bytes is None:
        return f"{read})"
    received = num_bytes(small.received_bytes)
    return f"{read}; {received} in {counted(small.requests, 'request')} with headers)"


def _unread(evidence: Evidence) -> str:
    """What is not known because parts of the weights were not read."""
    checkpoint = evidence.measurements.checkpoint
    if checkpoint.small is None:
        return ""
    scales, rows = checkpoint.scales, checkpoint.small.num_tied_rows
    num_stored = scales.num_stored or 0
    sampled = (
        f" Scales were sampled, {scales.num_scales:,} of {num_stored:,}: the others may be faulty."
        if num_stored > scales.num_scales
        else ""
    )
    compared = (
        f" Tensors that the config ties were compared in {counted(rows, 'row')}." if rows else ""
    )
    return f" Nor is anything known of the values of the other tensors.{sampled}{compared}"


def _not_followed(evidence: Evidence) -> str:
    """What is not known because the data flow of the layers is not, or a rule failed on it."""
    failure = evidence.measurements.coverage.not_followed
    if failure is None:
        return ""
    return (
        " What key biases do to an fp8 cache (PC601), and bounds of scores and of the residual "
        f"stream (PC703, PC704), were not looked at, or not all of them: {failure}."
    )
