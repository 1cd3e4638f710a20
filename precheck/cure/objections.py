"""Whether a fixed checkpoint is accepted, by the figures of its proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge import thresholds
from precheck.records.finding import USABLE
from precheck.records.outcomes.fix import run_label

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.records.outcomes.fix import ProofRun
    from precheck.records.precision import Dtype


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
    sentences: dict[str, None] = {}
    for run in runs:
        if run.checkpoint != "fixed" or not (run.dtype is dtype or run.dtype.is_reference):
            continue
        kl, where = run.kl_divergence_mean, run_label(run)
        if run.dtype is dtype and run.verdict not in USABLE:
            sentences[f"{run.dtype} is {run.verdict}: {run.reason or 'see the scan'}"] = None
        if kl is None:
            sentences[f"{where} has no finite logits to compare"] = None
            continue
        is_too_far = run.dtype is dtype and kl > thresholds.DEGRADED_KL_DIVERGENCE.value
        if is_too_far or (run.dtype.is_reference and kl > same.value):
            sentences[f"{where} differs from the original in float32 by {kl:.2g} nat"] = None
    return tuple(sentences)


def is_close(kl_divergence: float | None) -> bool:
    """Whether logits are as close to the original's as those of a usable run.

    Args:
        kl_divergence: mean over real tokens, nats; None where a logit is not finite.
    """
    return kl_divergence is not None and kl_divergence <= thresholds.DEGRADED_KL_DIVERGENCE.value
