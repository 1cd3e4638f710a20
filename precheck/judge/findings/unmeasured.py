"""Findings on what was not run: what is documented for the family, what a scan would add."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.families import FamilyFact, facts_on
from precheck.records.finding import USABLE, Confidence, Finding, Severity

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
            "Nothing was run: config, headers and weights were read; the rest is documented or "
            "predicted. This checkpoint's overflows, headroom and precision are not known."
        ),
        advice=(
            f"precheck scan {model.id} measures every operation in float16, bfloat16 and float32 "
            "and names the first that overflows."
        ),
    )
