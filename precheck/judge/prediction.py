"""The verdict on a configuration that was not measured: from similar runs and from ranges.

Every fused attention kernel keeps scores in float32, so the verdict on one of them holds for the
others. Where none was measured, the largest values of the other mechanisms (products, residual
stream) say whether they fit. Where nothing was run, only what is documented for the family is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.families import FamilyFact, facts_on
from precheck.judge.thresholds import LOW_HEADROOM
from precheck.records.finding import USABLE, Confidence, Verdict
from precheck.records.mechanism import MECHANISMS
from precheck.records.precision import headroom_bits
from precheck.records.quantities import bits, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration
    from precheck.records.mechanism import Mechanism
    from precheck.records.report import Run
    from precheck.records.traces import Headroom

FUSED = "a fused kernel"
"""Any implementation that does not materialise the scores."""

PRODUCTS = frozenset(mechanism for mechanism, row in MECHANISMS.items() if row.is_product)
"""What is in 16 bits where activations between products are kept in float32."""


class Prediction(NamedTuple):
    """A verdict and why; ``verdict`` is None where nothing is known."""

    verdict: Verdict | None
    confidence: Confidence
    why: str

    @property
    def is_usable(self) -> bool | None:
        """Whether its output can be trusted; None where nothing is known."""
        return None if self.verdict is None else self.verdict in USABLE


_REFERENCE_IS_SAFE = Prediction(Verdict.SAFE, Confidence.PREDICTED, "float32 is the reference")


def predict(
    evidence: Evidence,
    configuration: Configuration,
    *,
    mechanisms: frozenset[Mechanism] | None = None,
) -> Prediction:
    """The verdict that was measured, or else what follows from what was.

    Args:
        evidence: the scan.
        configuration: its attention implementation is transformers' name, or ``FUSED``.
        mechanisms: only these are in 16 bits; None: whatever the model has in them.
    """
    attn = configuration.attn_implementation
    measured = [
        run
        for run in evidence.runs
        if run.failure is None
        and run.configuration.with_attention(attn) == configuration
        and mechanisms is None
    ]
    same = [run for run in measured if run.configuration == configuration]
    if same:
        return _as_measured(same, Confidence.MEASURED, "")
    if not evidence.runs:
        return _documented(evidence, configuration, mechanisms=mechanisms)
    if evidence.broken_references:
        return Prediction(Verdict.OVERFLOW, Confidence.PREDICTED, "not finite in float32 either")
    fused = [run for run in measured if run.attn_implementation != "eager"]
    if attn != "eager" and fused:
        return _as_measured(
            fused,
            Confidence.PREDICTED,
            f"like {fused[0].attn_implementation}, it keeps scores in float32",
        )
    return _from_ranges(evidence, configuration, measured, mechanisms=mechanisms)


def _as_measured(runs: list[Run], confidence: Confidence, why: str) -> Prediction:
    gravest = min(runs, key=lambda run: run.verdict.order)
    reasons = (gravest.reason, why)
    return Prediction(gravest.verdict, confidence, "; ".join(filter(None, reasons)))


def _from_ranges(
    evidence: Evidence,
    configuration: Configuration,
    measured: list[Run],
    *,
    mechanisms: frozenset[Mechanism] | None,
) -> Prediction:
    if configuration.is_reference:
        return _REFERENCE_IS_SAFE
    dtype, is_fused = configuration.dtype, configuration.attn_implementation != "eager"
    rows = [
        row
        for row in evidence.measurements.headroom
        if _is_in_16_bits(row, evidence, is_fused=is_fused)
        and (mechanisms is None or row.mechanism in mechanisms)
    ]
    tight = min(rows, key=lambda row: headroom_bits(row.abs_max, dtype) or 0.0, default=None)
    if tight is None:
        return Prediction(None, Confidence.PREDICTED, "not measured")
    left = headroom_bits(tight.abs_max, dtype) or 0.0
    largest = f"{magnitude(tight.abs_max)} in {tight.mechanism.phrase} ({tight.module})"
    if left < 0:
        return Prediction(Verdict.OVERFLOW, Confidence.PREDICTED, largest)
    if any(run.verdict is Verdict.DEGRADED for run in measured):
        return Prediction(
            None, Confidence.PREDICTED, "not measured; eager attention loses accuracy"
        )
    if left < LOW_HEADROOM.value:
        return Prediction(
            Verdict.LOW_HEADROOM, Confidence.PREDICTED, f"{largest}, {bits(left)} bits of headroom"
        )
    return Prediction(Verdict.SAFE, Confidence.PREDICTED, f"at most {largest}")


def _is_in_16_bits(row: Headroom, evidence: Evidence, *, is_fused: bool) -> bool:
    """Whether the values of a row are in 16 bits where attention is fused, or is not."""
    if is_fused and MECHANISMS[row.mechanism].is_in_scores:
        return False
    if row.attn_implementation not in {None, "eager"} and not is_fused:
        return False
    return row.abs_max > 0 and not _is_kept_in_float32(row.module, evidence)


def _is_kept_in_float32(module: str, evidence: Evidence) -> bool:
    kept: Iterable[str] = evidence.measurements.checkpoint.kept_in_float32
    return any(module == name or module.startswith(f"{name}.") for name in kept)


def _documented(
    evidence: Evidence,
    configuration: Configuration,
    *,
    mechanisms: frozenset[Mechanism] | None,
) -> Prediction:
    if configuration.is_reference:
        return _REFERENCE_IS_SAFE
    facts = [
        fact
        for fact in family_facts(evidence, configuration)
        if mechanisms is None or fact.mechanism in mechanisms
    ]
    if not facts:
        return Prediction(None, Confidence.PREDICTED, "not measured, and nothing is documented")
    gravest = min(facts, key=lambda fact: fact.effect.order)
    return Prediction(gravest.effect, Confidence.DOCUMENTED, gravest.fact)


def family_facts(evidence: Evidence, configuration: Configuration) -> tuple[FamilyFact, ...]:
    """What is documented for the model's family in this configuration."""
    return tuple(
        fact
        for fact in facts_on(evidence.measurements.model.model_type)
        if fact.dtype is configuration.dtype
        and fact.attention in {None, configuration.attn_implementation}
    )
