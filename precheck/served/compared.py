"""A server's answers next to a run, position by position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precheck.served.distance import Told, at_least, at_most
from precheck.served.readings import compared_places

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from precheck.records.outcomes.served import Answer
    from precheck.served.readings import Reading

FLOAT32_NOISE = 1e-8
"""Nats between float32 kernels that add up in another order, at least."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compared:
    """Divergences of one answer, position by position, ``(positions,)``; NaN where unknown."""

    divergence: NDArray[np.float64]
    """Of the server from the run, at least."""
    rounding: NDArray[np.float64]
    """Of the run from float32, over the same tokens."""
    most: NDArray[np.float64]
    """Of the server from the run, at most."""
    num_prefill: int
    """Positions that the prompt alone decides; they come first."""


def num_prefill(answer: Answer) -> int:
    """Positions before the first that attends to a generated token's cache."""
    return len(answer.prompt_places) + min(1, len(answer.generated))


def compare(answer: Answer, reading: Reading, reference: Reading) -> Compared:
    """One answer next to one run."""
    told = Told.of(compared_places(answer))
    divergence = at_least(told.log_probabilities, reading.at_told)
    return Compared(
        divergence=np.where(told.is_told, divergence, np.nan),
        rounding=at_least(reading.at_told, reference.at_told),
        most=np.where(told.is_told, at_most(told, reading), np.nan),
        num_prefill=num_prefill(answer),
    )


def likeness(own: Sequence[Compared], reference: Sequence[Compared]) -> float | None:
    """Cosine of what the server and the run differ from float32 by; None where one does not.

    KL is half a squared length there, so the lengths of a triangle's sides give its angle. Sums
    over all positions: a cosine of few has much noise.
    """
    apart, far, server = (
        np.concatenate(parts)
        for parts in (
            [each.divergence for each in own],
            [each.rounding for each in own],
            [each.divergence for each in reference],
        )
    )
    is_known = np.isfinite(apart) & np.isfinite(far) & np.isfinite(server)
    sums = [float(values[is_known].sum()) for values in (far, server, apart)]
    if min(sums[:2]) <= FLOAT32_NOISE * is_known.sum():
        return None
    cosine = (sums[0] + sums[1] - sums[2]) / (2 * math.sqrt(sums[0] * sums[1]))
    return max(-1.0, min(1.0, cosine))
