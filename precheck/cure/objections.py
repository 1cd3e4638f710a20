"""Whether a fixed checkpoint is accepted, by the figures of its proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge import thresholds
from precheck.records.finding import USABLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.records.fix import ProofRun
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
