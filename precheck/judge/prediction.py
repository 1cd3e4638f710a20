"""What a configuration amounts to that was not measured: from its neighbours and from ranges.

A fused attention kernel keeps scores in float32, whichever it is: what one of them was measured
to do holds for the others. Where none was measured, the largest values of the other mechanisms
(products, residual stream) say whether float16 holds them. Where nothing was run at all, what is
documented of the family is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.families import FamilyFact, facts_on
from precheck.judge.thresholds import LOW_HEADROOM
from precheck.records.finding import USABLE, Confidence, Verdict
from precheck.records.precision import Dtype, headroom_bits
from precheck.records.quantities import bits, magnitude
from precheck.records.traces import Mechanism

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.judge.evidence import Evidence
    from precheck.records.report import Run
    from precheck.records.traces import Headroom

FUSED = "a fused kernel"
"""Any implementation that does not write out the scores."""

IN_SCORES = frozenset({Mechanism.ATTENTION_SCORES, Mechanism.MASK})
"""Mechanisms that only attention which writes out its scores has."""

PRODUCTS = frozenset(
    {
        Mechanism.GATED_PRODUCT,
        Mechanism.MLP_OUTPUT,
        Mechanism.PROJECTION,
        Mechanism.LOGITS,
    }
)
"""What is in 16 bits where activations between products are kept in float32."""

_GRAVITY = {verdict: gravity for gravity, verdict in enumerate(Verdict)}


class Prediction(NamedTuple):
    """What a configuration amounts to; ``verdict`` is None where nothing tells."""

    verdict: Verdict | None
    confidence: Confidence
    why: str

    @property
    def is_usable(self) -> bool | None:
        """Whether its output can be trusted; None where nothing tells."""
        return None if self.verdict is None else self.verdict in USABLE


def predict(
    evidence: Evidence,
    dtype: Dtype,
    attn_implementation: str,
    *,
    mechanisms: frozenset[Mechanism] | None = None,
) -> Prediction:
    """The verdict that was measured, or else what follows from what was.

    Args:
        evidence: the scan.
        dtype: of the configuration.
        attn_implementation: transformers' name, or ``FUSED``.
        mechanisms: only these are in 16 bits; None: whatever the model has in them.
    """
    ran = [
        run
        for run in evidence.runs
        if run.failure is None
        and run.dtype is dtype
        and run.configuration.is_plain
        and mechanisms is None
    ]
    same = [run for run in ran if run.attn_implementation == attn_implementation]
    if same:
        return _as_measured(same, Confidence.MEASURED, "")
    if not evidence.runs:
        return _documented(evidence, dtype, attn_implementation, mechanisms=mechanisms)
    if evidence.broken_references:
        return Prediction(Verdict.OVERFLOW, Confidence.PREDICTED, "not finite in float32 either")
    is_fused = attn_implementation != "eager"
    fused = [run for run in ran if run.attn_implementation != "eager"]
    if is_fused and fused:
        return _as_measured(
            fused,
            Confidence.PREDICTED,
            f"as {fused[0].attn_implementation}: both keep scores in float32",
        )
    return _from_ranges(evidence, dtype, ran, is_fused=is_fused, mechanisms=mechanisms)


def _as_measured(runs: list[Run], confidence: Confidence, why: str) -> Prediction:
    gravest = min(runs, key=lambda run: _GRAVITY[run.verdict])
    return Prediction(
        gravest.verdict, confidence, "; ".join(each for each in (gravest.reason, why) if each)
    )


def _from_ranges(
    evidence: Evidence,
    dtype: Dtype,
    ran: list[Run],
    *,
    is_fused: bool,
    mechanisms: frozenset[Mechanism] | None,
) -> Prediction:
    if dtype.is_reference:
        return Prediction(Verdict.SAFE, Confidence.PREDICTED, "float32 is the reference")
    rows = [
        row
        for row in evidence.measurements.headroom
        if _counts(row, evidence, is_fused=is_fused)
        and (mechanisms is None or row.mechanism in mechanisms)
    ]
    tight = min(rows, key=lambda row: headroom_bits(row.abs_max, dtype) or 0.0, default=None)
    if tight is None:
        return Prediction(None, Confidence.PREDICTED, "not measured")
    left = headroom_bits(tight.abs_max, dtype) or 0.0
    said = f"{magnitude(tight.abs_max)} in {tight.mechanism.phrase} ({tight.module})"
    if left < 0:
        return Prediction(Verdict.OVERFLOW, Confidence.PREDICTED, said)
    if any(run.verdict is Verdict.DEGRADED for run in ran):
        return Prediction(
            None, Confidence.PREDICTED, "not measured; eager attention loses accuracy"
        )
    if left < LOW_HEADROOM.value:
        return Prediction(
            Verdict.LOW_HEADROOM, Confidence.PREDICTED, f"{said}, {bits(left)} bits left"
        )
    return Prediction(Verdict.SAFE, Confidence.PREDICTED, f"at most {said}")


def _counts(row: Headroom, evidence: Evidence, *, is_fused: bool) -> bool:
    """Whether a row's values are in 16 bits there."""
    if is_fused and row.mechanism in IN_SCORES:
        return False
    if row.attn_implementation not in {None, "eager"} and not is_fused:
        return False
    return row.abs_max > 0 and not _is_kept(row.module, evidence)


def _is_kept(module: str, evidence: Evidence) -> bool:
    kept: Iterable[str] = evidence.measurements.checkpoint.kept_in_float32
    return any(module == each or module.startswith(f"{each}.") for each in kept)


def _documented(
    evidence: Evidence,
    dtype: Dtype,
    attn_implementation: str,
    *,
    mechanisms: frozenset[Mechanism] | None,
) -> Prediction:
    if dtype.is_reference:
        return Prediction(Verdict.SAFE, Confidence.PREDICTED, "float32 is the reference")
    facts = [
        fact
        for fact in family_facts(evidence, dtype, attn_implementation)
        if mechanisms is None or fact.mechanism in mechanisms
    ]
    if not facts:
        return Prediction(None, Confidence.PREDICTED, "nothing was run, and nothing is documented")
    gravest = min(facts, key=lambda fact: _GRAVITY[fact.effect])
    return Prediction(gravest.effect, Confidence.DOCUMENTED, gravest.fact)


def family_facts(
    evidence: Evidence, dtype: Dtype, attn_implementation: str
) -> tuple[FamilyFact, ...]:
    """What is documented of the model's family in this configuration."""
    return tuple(
        fact
        for fact in facts_on(evidence.measurements.model.model_type)
        if fact.dtype is dtype and fact.attention in {None, attn_implementation}
    )
