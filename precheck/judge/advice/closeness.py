"""Which of two runs is closer to float32, by the first figure that both of them have."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.judge.thresholds import SAME_KL_DIVERGENCE, SAME_RELATIVE_ERROR
from precheck.records.loss import loss
from precheck.records.quantities import nats, percent

if TYPE_CHECKING:
    from precheck.records.report import Run


class Distances(NamedTuple):
    """How far two runs are from float32, in the same figure."""

    run: float
    other: float
    same: float
    """Two runs below it are equally close, and neither is better."""
    words: str
    """Both numbers, the run's first."""

    @property
    def is_closer(self) -> bool:
        """Whether the run is measurably closer than the other."""
        return self.run < self.other and not self.are_alike

    @property
    def are_alike(self) -> bool:
        """Whether both are so close that the difference does not matter."""
        return max(self.run, self.other) <= self.same


def distances(run: Run, other: Run) -> Distances | None:
    """KL divergences, or relative errors where the outputs are no scores; None: neither.

    A model without a vocabulary (an encoder of sentences) has no KL, and its last layer is what
    is used of it.
    """
    ours, theirs = loss(run), loss(other)
    if ours.kl_divergence is not None and theirs.kl_divergence is not None:
        kind = "typical" if ours.is_typical else "mean"
        words = f"{kind} KL {nats(ours.kl_divergence)} nat against {nats(theirs.kl_divergence)}"
        same = SAME_KL_DIVERGENCE.value
        return Distances(ours.kl_divergence, theirs.kl_divergence, same, words)
    if ours.relative_error is not None and theirs.relative_error is not None:
        words = (
            f"relative error {percent(ours.relative_error)} against "
            f"{percent(theirs.relative_error)}"
        )
        same = SAME_RELATIVE_ERROR.value
        return Distances(ours.relative_error, theirs.relative_error, same, words)
    return None
