"""Whether a checkpoint needs a fix at all, by the verdicts of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.records.finding import Verdict
from precheck.records.outcomes.fix import Remedy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.precision import Dtype
    from precheck.records.report import Report, Run

_NEEDS_NO_FIX = frozenset({Verdict.SAFE, Verdict.ABSORBED})
"""A run with low headroom works too, but gets more headroom."""


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
    failed = next((run.failure for run in references if run.failure), None)
    if failed is not None:
        return Decision(remedy=Remedy.NONE, sentence=f"no float32 run to compare with: {failed}")
    if not references or any(run.reference_nonfinite for run in references):
        reason = next((run.reason for run in references if run.reason), "it was not measured")
        return Decision(
            remedy=Remedy.NONE,
            sentence=f"broken in float32 as well ({reason}): there is no correct output to keep",
        )
    plain = [run for run in report.runs if run.dtype is dtype and run.configuration.is_plain]
    runs = [run for run in plain if run.failure is None]
    if not runs:
        reason = next((run.reason for run in plain), None) or "it was not measured"
        return Decision(remedy=Remedy.NONE, sentence=f"no {dtype} run to judge by: {reason}")
    fine = [run for run in runs if run.verdict in _NEEDS_NO_FIX]
    if len(fine) == len(runs):
        return Decision(remedy=Remedy.NOTHING, sentence=f"it runs in {dtype} as it is")
    if fine:
        best = next(
            (run for run in fine if run.attn_implementation == attn_implementation), fine[0]
        )
        return Decision(remedy=Remedy.ATTENTION, sentence=_attention_sentence(best, runs, report))
    return None


def _attention_sentence(best: Run, runs: Sequence[Run], report: Report) -> str:
    wrong = next(run for run in runs if run.verdict not in _NEEDS_NO_FIX)
    default = report.model.default_attn_implementation == best.attn_implementation
    return (
        f"another attention implementation fixes it: {best.attn_implementation}"
        f"{' (the default)' if default else ''} runs in {best.dtype}, "
        f"{wrong.attn_implementation} does not ({wrong.reason or wrong.verdict}); "
        f'load it with attn_implementation="{best.attn_implementation}"'
    )
