"""Whether a checkpoint needs a fix, and whether what was written is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.judge import thresholds
from precheck.records.finding import USABLE, Verdict
from precheck.records.fix import MechanismRoom, ProofRun, Remedy, Room
from precheck.records.quantities import listed, magnitude
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precheck.cure.scales.solve import Choice
    from precheck.records.precision import Dtype
    from precheck.records.report import Report, Run

_RUNS = frozenset({Verdict.SAFE, Verdict.ABSORBED})
"""Needs nothing. What has little headroom runs too, and is given more."""
_SHOWN_ROOMS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A remedy that writes nothing, and what it is in a sentence."""

    remedy: Remedy
    sentence: str


def cheaper_remedy(report: Report, dtype: Dtype, attn_implementation: str) -> Decision | None:
    """What to do instead of writing a checkpoint; None if one has to be written.

    Args:
        report: a scan with runs in float32 and in ``dtype``.
        dtype: what the checkpoint is to run in.
        attn_implementation: what it is loaded with unless something else is asked for.
    """
    references = [each for each in report.runs if each.dtype.is_reference]
    if not references or any(each.reference_nonfinite or each.failure for each in references):
        reason = next((each.reason for each in references if each.reason), "it was not measured")
        return Decision(
            remedy=Remedy.NONE,
            sentence=f"broken in float32 itself ({reason}): there is nothing to keep as it is",
        )
    asked = [each for each in report.runs if each.dtype is dtype and each.configuration.is_plain]
    runs = [each for each in asked if each.failure is None]
    if not runs:
        reason = next((each.reason for each in asked), None) or "it was not measured"
        return Decision(remedy=Remedy.NONE, sentence=f"no run in {dtype} to judge by: {reason}")
    fine = [each for each in runs if each.verdict in _RUNS]
    if len(fine) == len(runs):
        return Decision(
            remedy=Remedy.NOTHING, sentence=f"it runs in {dtype} as it is; nothing was written"
        )
    if fine:
        best = next(
            (each for each in fine if each.attn_implementation == attn_implementation), fine[0]
        )
        return Decision(remedy=Remedy.ATTENTION, sentence=_attention(best, runs, report))
    if any(layer.section in TOWERS for run in runs for layer in run.layers):
        return Decision(
            remedy=Remedy.NONE,
            sentence="it takes images or sounds, and a fix is chosen and proved on text alone",
        )
    return None


def _attention(best: Run, runs: Sequence[Run], report: Report) -> str:
    wrong = next(each for each in runs if each.verdict not in _RUNS)
    default = report.model.default_attn_implementation == best.attn_implementation
    return (
        f"another attention implementation cures it: {best.attn_implementation}"
        f"{' (the default)' if default else ''} runs in {best.dtype}, "
        f"{wrong.attn_implementation} does not ({wrong.reason or wrong.verdict}); "
        f'load it with attn_implementation="{best.attn_implementation}". Nothing was written'
    )


def rooms(choice: Choice, *, headroom_bits: float) -> tuple[Room, ...]:
    """Results that had less room than was asked for, the tightest first, or have less now."""
    tight = [e for e in choice.fits if min(e.before_bits, e.after_bits) < headroom_bits]
    ordered = sorted(tight, key=lambda each: each.before_bits)
    return tuple(
        Room(
            module=each.scaled.key[0],
            op=each.scaled.key[1],
            source=each.scaled.source,
            abs_max=each.abs_max,
            before_bits=each.before_bits,
            after_bits=each.after_bits,
        )
        for each in ordered[:_SHOWN_ROOMS]
    )


def mechanism_rooms(before: Report, after: Report, *, dtype: Dtype) -> tuple[MechanismRoom, ...]:
    """The least headroom of each mechanism in both reports."""
    old, new = _least(before, dtype), _least(after, dtype)
    return tuple(
        MechanismRoom(mechanism=each, before_bits=old.get(each), after_bits=new.get(each))
        for each in sorted({*old, *new}, key=lambda each: old.get(each, 0.0))
    )


def _least(report: Report, dtype: Dtype) -> dict[str, float]:
    attn = report.model.default_attn_implementation
    found: dict[str, float] = {}
    for row in report.headroom:
        bits = row.headroom_bits.get(dtype)
        if bits is not None and row.attn_implementation in {None, attn}:
            found[row.mechanism] = min(bits, found.get(row.mechanism, bits))
    return found


def objections(
    runs: Iterable[ProofRun], *, dtype: Dtype, is_exact: bool = False
) -> tuple[str, ...]:
    """Why the written checkpoint is no fix; empty if it is one.

    Args:
        runs: of the original and of the fixed one.
        dtype: what it was fixed for.
        is_exact: it is to be the same model in float32, but for values that became too small.
    """
    same = thresholds.EXACT_KL_DIVERGENCE if is_exact else thresholds.SAME_KL_DIVERGENCE
    found: list[str] = []
    for run in runs:
        if run.checkpoint != "fixed":
            continue
        kl = run.kl_divergence_mean
        if run.dtype is dtype and run.verdict not in USABLE:
            found.append(f"{run.dtype} is {run.verdict}: {run.reason or 'see the scan'}")
        if kl is None:
            found.append(f"{run.dtype} has no finite logits to compare")
        elif run.dtype is dtype and kl > thresholds.DEGRADED_KL_DIVERGENCE.value:
            found.append(f"{run.dtype} differs from the original in float32 by {kl:.2g} nat")
        elif run.dtype.is_reference and kl > same.value:
            found.append(f"float32 differs from the original in float32 by {kl:.2g} nat")
    return tuple(found)


def is_close(kl_divergence: float | None) -> bool:
    """Whether logits are as near to the original's as those of a run have to be.

    Args:
        kl_divergence: mean over real tokens, nats; None where a logit is not finite.
    """
    return kl_divergence is not None and kl_divergence <= thresholds.DEGRADED_KL_DIVERGENCE.value


def too_large(choice: Choice) -> tuple[str, ...]:
    """What would still not fit, as sentences."""
    return tuple(
        f"{each.scaled.key[0] or 'the model'} ({each.scaled.key[1]} at {each.scaled.source}) "
        f"reaches {magnitude(each.abs_max)}, and no exact rescaling makes it smaller"
        for each in sorted(choice.misfits, key=lambda each: each.after_bits)[:3]
    )


def in_the_way(choice: Choice) -> tuple[str, ...]:
    """What forbids an exact rescaling, as sentences: one for each line of code."""
    modules: dict[tuple[str, str, str], list[str]] = {}
    for each in choice.broken:
        where = modules.setdefault((_REASONS[each.reason], each.op, each.source), [])
        if each.module not in where:
            where.append(each.module)
    return tuple(
        f"{reason}: {op} at {source}, in {listed(tuple(where), most=1) or 'the model'}"
        for (reason, op, source), where in modules.items()
    )


_REASONS = {
    "alike": "what is joined there would be scaled by different factors",
    "not_linear": "it is read without a norm before it, by an operation that hands no factor on",
    "clamp": "it is cut off at a constant that is not scaled",
    "constant": "a constant is added that is not scaled",
    "epsilon": "the epsilon of a norm is not scaled",
    "result": "the logits would change",
}
