"""How far a server is from a run where only its likeliest tokens are known.

Idea. The told tokens are one bucket each, and all others together are one more. The divergence of
the buckets is a lower bound of that of the distributions (merging outcomes never raises it). Every
run is compared over the same buckets, so that distances can be compared with each other. For the
upper bound the tail stands where the run finds it least likely, each of its tokens at most as
likely as the unlikeliest told one.

Assumptions. The told log-probabilities are of the model's own distribution, before anything else
is done to it; where they are not, that is a finding of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from precheck.records.outcomes.served import Place
    from precheck.served.readings import Reading

SMALLEST_TAIL = 1e-12
"""Probability of all untold tokens together, at least: what is left of float64 sums."""
LARGEST = 1e3
"""A divergence beyond it is written as this: one of them has probability 0."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Told:
    """What a server told at the positions of one answer.

    ``log_probabilities`` is ``(positions, most told)`` float64, -inf where a position has fewer.
    ``is_told`` ``(positions,)`` is false where one is no number.
    """

    log_probabilities: NDArray[np.float64]
    is_told: NDArray[np.bool_]

    @classmethod
    def of(cls, places: Sequence[Place]) -> Told:
        """The positions of an answer as one array."""
        width = max((len(place.ids) for place in places), default=0)
        values = np.full((len(places), width), -np.inf)
        for row, place in enumerate(places):
            numbers = [np.nan if one is None else one for one in place.log_probabilities]
            values[row, : len(numbers)] = numbers
        return cls(
            log_probabilities=values, is_told=np.array([one.is_told for one in places], dtype=bool)
        )


def buckets(log_probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities with that of all others as the last column; rows sum to 1."""
    told = np.exp(log_probabilities)
    total = told.sum(axis=1, keepdims=True)
    told = told / np.maximum(total, 1.0)  # float32 sums may exceed it by rounding
    rest = np.maximum(1.0 - told.sum(axis=1, keepdims=True), SMALLEST_TAIL)
    return np.concatenate([told, rest], axis=1)


def at_least(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(first || second) in nats of the buckets, ``(positions,)``; NaN where one is NaN.

    Args:
        first: log-probabilities of the told tokens, ``(positions, most told)``.
        second: the same of the other.
    """
    p, q = buckets(first), buckets(second)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    terms = np.where(np.isnan(p) | np.isnan(q), np.nan, terms)
    divergences: NDArray[np.float64] = np.clip(terms.sum(axis=1), 0.0, LARGEST)
    return divergences


def at_most(told: Told, reading: Reading) -> NDArray[np.float64]:
    """KL(server || run) in nats at most, ``(positions,)``; NaN where one is NaN."""
    values = told.log_probabilities
    if not values.shape[1]:
        return np.full(len(values), LARGEST)
    p = buckets(values)
    shown = np.where(np.isinf(values), np.inf, values)
    last = np.minimum(np.min(shown, axis=1), 0.0)
    with np.errstate(invalid="ignore"):
        told_terms = np.where(p[:, :-1] > 0, p[:, :-1] * (values - reading.at_told), 0.0)
    tail = p[:, -1] * (last - reading.lowest)
    bounds: NDArray[np.float64] = told_terms.sum(axis=1) + np.maximum(tail, 0.0)
    return bounds.clip(0.0, LARGEST)
