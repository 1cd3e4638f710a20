"""Whether a checkpoint needs a fix, whether a fix is accepted, and what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Reason
from precheck.judge import thresholds
from precheck.records.finding import USABLE, Verdict
from precheck.records.fix import MechanismHeadroom, OpHeadroom, ProofRun, Remedy
from precheck.records.quantities import listed, magnitude
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precheck.cure.scales.solve import Choice
    from precheck.records.precision import Dtype
    from precheck.records.report import Report, Run

_NEEDS_NO_FIX = frozenset({Verdict.SAFE, Verdict.ABSORBED})
"""A run with little headroom works too, and is given more."""
_MOST_RESULTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A remedy that writes nothing, and a sentence that says why."""

    remedy: Remedy
    sentence: str


def cheaper_remedy(report: Report, dtype: Dtype, attn_implementation: str) -> Decision | None:
    """What to do instead of writing a checkpoint; None if one has to be written.

    Args:
        report: a scan with runs in float32 and in ``dtype``.
        dtype: the dtype that the checkpoint is to run in.
        attn_implementation: the attention implementation that it is loaded with by default.
    """
    references = [run for run in report.runs if run.dtype.is_reference]
    if not references or any(run.reference_nonfinite or run.failure for run in references):
        reason = next((run.reason for run in references if run.reason), "it was not measured")
        return Decision(
            remedy=Remedy.NONE,
            sentence=f"broken in float32 itself ({reason}): there is nothing to keep as it is",
        )
    plain = [run for run in report.runs if run.dtype is dtype and run.configuration.is_plain]
    runs = [run for run in plain if run.failure is None]
    if not runs:
        reason = next((run.reason for run in plain), None) or "it was not measured"
        return Decision(remedy=Remedy.NONE, sentence=f"no run in {dtype} to judge by: {reason}")
    fine = [run for run in runs if run.verdict in _NEEDS_NO_FIX]
    if len(fine) == len(runs):
        return Decision(
            remedy=Remedy.NOTHING, sentence=f"it runs in {dtype} as it is; nothing was written"
        )
    if fine:
        best = next(
            (run for run in fine if run.attn_implementation == attn_implementation), fine[0]
        )
        return Decision(remedy=Remedy.ATTENTION, sentence=_attention_sentence(best, runs, report))
    if any(layer.section in TOWERS for run in runs for layer in run.layers):
        return Decision(
            remedy=Remedy.NONE,
            sentence="it takes images or sounds, and a fix is chosen and proved on text alone",
        )
    return None


def _attention_sentence(best: Run, runs: Sequence[Run], report: Report) -> str:
    wrong = next(run for run in runs if run.verdict not in _NEEDS_NO_FIX)
    default = report.model.default_attn_implementation == best.attn_implementation
    return (
        f"another attention implementation cures it: {best.attn_implementation}"
        f"{' (the default)' if default else ''} runs in {best.dtype}, "
        f"{wrong.attn_implementation} does not ({wrong.reason or wrong.verdict}); "
        f'load it with attn_implementation="{best.attn_implementation}". Nothing was written'
    )


def tight_results(choice: Choice, *, headroom_bits: float) -> tuple[OpHeadroom, ...]:
    """Results with less headroom than asked for, before or after; the tightest before first."""
    tight = [row for row in choice.headroom if min(row.before_bits, row.after_bits) < headroom_bits]
    ordered = sorted(tight, key=lambda row: row.before_bits)
    return tuple(
        OpHeadroom(
            module=row.result.key[0],
            op=row.result.key[1],
            source=row.result.source,
            abs_max=row.abs_max,
            before_bits=row.before_bits,
            after_bits=row.after_bits,
        )
        for row in ordered[:_MOST_RESULTS]
    )


def mechanism_headroom(
    before: Report, after: Report, *, dtype: Dtype
) -> tuple[MechanismHeadroom, ...]:
    """The least headroom of each mechanism in both reports, the tightest before first."""
    old, new = _least_bits(before, dtype), _least_bits(after, dtype)
    mechanisms = sorted({*old, *new}, key=lambda mechanism: old.get(mechanism, 0.0))
    return tuple(
        MechanismHeadroom(
            mechanism=mechanism, before_bits=old.get(mechanism), after_bits=new.get(mechanism)
        )
        for mechanism in mechanisms
    )


def _least_bits(report: Report, dtype: Dtype) -> dict[str, float]:
    attn = report.model.default_attn_implementation
    least: dict[str, float] = {}
    for row in report.headroom:
        bits = row.headroom_bits.get(dtype)
        if bits is not None and row.attn_implementation in {None, attn}:
            least[row.mechanism] = min(bits, least.get(row.mechanism, bits))
    return least


def objections(
    runs: Iterable[ProofRun], *, dtype: Dtype, is_exact: bool = False
) -> tuple[str, ...]:
    """Why the fixed checkpoint is not accepted; empty if it is.

    Args:
        runs: of the original and of the fixed checkpoint.
        dtype: the dtype that it was fixed for.
        is_exact: in float32 it should be the same model, apart from values that became subnormal.
    """
    same = thresholds.EXACT_KL_DIVERGENCE if is_exact else thresholds.SAME_KL_DIVERGENCE
    sentences: list[str] = []
    for run in runs:
        if run.checkpoint != "fixed":
            continue
        kl = run.kl_divergence_mean
        if run.dtype is dtype and run.verdict not in USABLE:
            sentences.append(f"{run.dtype} is {run.verdict}: {run.reason or 'see the scan'}")
        if kl is None:
            sentences.append(f"{run.dtype} has no finite logits to compare")
        elif run.dtype is dtype and kl > thresholds.DEGRADED_KL_DIVERGENCE.value:
            sentences.append(f"{run.dtype} differs from the original in float32 by {kl:.2g} nat")
        elif run.dtype.is_reference and kl > same.value:
            sentences.append(f"float32 differs from the original in float32 by {kl:.2g} nat")
    return tuple(sentences)


def is_close(kl_divergence: float | None) -> bool:
    """Whether logits are as close to the original's as those of a usable run.

    Args:
        kl_divergence: mean over real tokens, nats; None where a logit is not finite.
    """
    return kl_divergence is not None and kl_divergence <= thresholds.DEGRADED_KL_DIVERGENCE.value


def overflow_sentences(choice: Choice) -> tuple[str, ...]:
    """The three results that would overflow most."""
    return tuple(
        f"{row.result.key[0] or 'the model'} ({row.result.key[1]} at {row.result.source}) "
        f"reaches {magnitude(row.abs_max)}, and no exact rescaling makes it smaller"
        for row in sorted(choice.overflowing, key=lambda row: row.after_bits)[:3]
    )


def blocking_equations(choice: Choice) -> tuple[str, ...]:
    """The broken equations as sentences: one for each line of code."""
    modules: dict[tuple[str, str, str], list[str]] = {}
    for equation in choice.broken:
        line = (_REASONS[equation.reason], equation.op, equation.source)
        line_modules = modules.setdefault(line, [])
        if equation.module not in line_modules:
            line_modules.append(equation.module)
    return tuple(
        f"{reason}: {op} at {source}, in {listed(tuple(names), most=1) or 'the model'}"
        for (reason, op, source), names in modules.items()
    )


_REASONS = {
    Reason.EQUAL: "what is joined there would be scaled by different factors",
    Reason.NOT_LINEAR: (
        "it is read without a norm before it, by an operation that hands no factor on"
    ),
    Reason.CLAMP: "it is cut off at a constant that is not scaled",
    Reason.CONSTANT: "a constant is added that is not scaled",
    Reason.EPSILON: "the epsilon of a norm is not scaled",
    Reason.RESULT: "the logits would change",
}
