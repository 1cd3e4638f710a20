"""What a run amounts to: the first verdict that holds, gravest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge import thresholds
from precheck.records.answers import AnswerKind
from precheck.records.finding import Verdict
from precheck.records.loss import loss
from precheck.records.quantities import bits, first_sentence, magnitude
from precheck.records.report import Run
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.format_loss import FormatCulprits
    from precheck.records.loss import Loss
    from precheck.records.traces import Headroom, Overflow, RunTrace


def is_degraded(figures: Loss) -> bool:
    """Whether a figure of a run's precision is beyond its threshold."""
    answers = figures.answers
    of_scores = answers is not None and answers.kind is AnswerKind.SCORES
    limit = thresholds.DEGRADED_SCORES if of_scores else thresholds.DEGRADED_RELATIVE_ERROR
    pairs = (
        (figures.kl_divergence, thresholds.DEGRADED_KL_DIVERGENCE),
        (figures.relative_error, thresholds.DEGRADED_RELATIVE_ERROR),
        (None if answers is None else answers.error, limit),
    )
    return any(figure is not None and figure > limit.value for figure, limit in pairs)


def is_degraded_by_format(figures: Loss, culprits: FormatCulprits | None) -> bool:
    """Whether a run whose cache or weights are stored in a format loses too much.

    Where there is a KL divergence it decides alone: the error of what is stored does not tell how
    much worse the answers are (https://github.com/ahb-sjsu/turboquant-pro/issues/98).
    """
    kl_divergence = figures.kl_divergence
    if kl_divergence is None:
        return is_degraded(figures)
    is_in_one_part = culprits is not None and culprits.are_one_part
    limit = thresholds.DEGRADED_FORMAT_KL_DIVERGENCE
    return kl_divergence > (thresholds.LOST_IN_ONE_PART if is_in_one_part else limit).value


def reference_of(run: RunTrace, *, runs: Sequence[RunTrace]) -> RunTrace | None:
    """The float32 run with the same attention implementation, the run itself among them."""
    reference = run.configuration.reference
    return next(
        (other for other in runs if other.configuration == reference and other.failure is None),
        None,
    )


def verdict(trace: RunTrace, *, runs: Sequence[RunTrace], headroom: Sequence[Headroom]) -> Run:
    """The run with its verdict, the reason as a sentence, and the overflow to look at first.

    Args:
        trace: the run to judge.
        runs: all runs of the scan, ``trace`` among them; its reference is one of these.
        headroom: all rows of the scan; those that count for the run are used.
    """
    gravest, reason = _gravest(trace, runs=runs, headroom=headroom)
    return Run.judged(
        trace,
        verdict=gravest,
        reason=reason,
        first_overflow=_first_overflow(trace, verdict=gravest),
    )


def _gravest(
    trace: RunTrace, *, runs: Sequence[RunTrace], headroom: Sequence[Headroom]
) -> tuple[Verdict, str | None]:
    broken = _without_an_answer(trace, runs=runs)
    if broken is not None:
        return broken
    figures = loss(trace)
    # A float32 run is only ever compared with another: where they differ (PC305), neither is worse.
    if trace.configuration.has_format:
        loses_too_much = is_degraded_by_format(figures, trace.format_culprits)
    else:
        loses_too_much = not trace.configuration.is_reference and is_degraded(figures)
    if loses_too_much:
        return Verdict.DEGRADED, figures.sentence
    if trace.overflows:
        return Verdict.ABSORBED, _absorbed_reason(trace, figures=figures)
    tight = tightest(headroom, trace.configuration)
    if tight is not None and tight[1] < thresholds.LOW_HEADROOM.value:
        return Verdict.LOW_HEADROOM, _headroom_reason(*tight)
    return Verdict.SAFE, None


def _without_an_answer(trace: RunTrace, *, runs: Sequence[RunTrace]) -> tuple[Verdict, str] | None:
    """Verdict and reason of a run whose output cannot be judged; None where it can."""
    reference = reference_of(trace, runs=runs)
    if not trace.is_finished:
        return Verdict.INCOMPLETE, trace.failure or "the scan ended early"
    if trace.failure is not None:
        # Libraries go on to what to report where; the whole text stays in ``failure``.
        return Verdict.FAILED, first_sentence(trace.failure)
    if trace.reference_nonfinite:
        return Verdict.OVERFLOW, f"the output of a real token is not finite even in {trace.dtype}"
    if reference is not None and reference.reference_nonfinite:
        return Verdict.FAILED, f"nothing to compare with: {reference.name} is itself not finite"
    if trace.reaches_output:
        first = _first_overflow(trace, verdict=Verdict.OVERFLOW)
        return Verdict.OVERFLOW, _overflow_reason(first)
    return None


def _overflow_reason(first: Overflow | None) -> str:
    if first is None:
        return "the output is not finite, but no watched operation caused it"
    if first.partial_sum is not None:
        return f"{first.mechanism.phrase}: up to {magnitude(first.partial_sum)}"
    if first.reference_abs_max is None or not first.is_out_of_range:
        return first.event
    return (
        f"{first.mechanism.phrase}: {magnitude(first.reference_abs_max)} in float32, "
        f"the maximum is {magnitude(first.limit)}"
    )


def _absorbed_reason(trace: RunTrace, *, figures: Loss) -> str:
    first = trace.overflows[0]
    accuracy = f"; {figures.sentence}" if figures.sentence else ""
    return (
        f"{first.mechanism.phrase} overflowed, but later operations made it finite again{accuracy}"
    )


def _headroom_reason(row: Headroom, left: float) -> str:
    return (
        f"{bits(left)} bits of headroom: {row.mechanism.phrase} reached {magnitude(row.abs_max)} "
        f"in {row.module}"
    )


def _first_overflow(trace: RunTrace, *, verdict: Verdict) -> Overflow | None:
    is_absorbed = verdict is not Verdict.OVERFLOW
    return next((row for row in trace.overflows if row.absorbed is is_absorbed), None)
