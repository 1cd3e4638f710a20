"""Which measured configurations a server behaves like: those that explain it, or none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from precheck.records.outcomes.served import ConfigurationDistance, Fingerprint
from precheck.served.compared import FLOAT32_NOISE
from precheck.served.distance import LARGEST
from precheck.served.likelihood import LEAST_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.served import Answer
    from precheck.served.questions import Tokens
    from precheck.served.readings import Reading

SAME_KERNELS = 0.5
"""Likeness from which on a server rounds as the run does, number by number. llama.cpp's and vLLM's
is below 0.2 in every configuration measured on SmolLM2-135M, transformers' own 0.9. Below it only
the size of the rounding is known, which a dtype and a format of the cache may share."""
TOLD_APART_FACTOR = 1 + 1 / LEAST_SHARE
"""Between two distances, where the nearer one is of a run that rounds as the server does: one that
rounds as the other run does at all is not farther."""
TOLERANCE_FACTOR = 6.0
LEAST_TOLERANCE = 0.005
"""Nats by which a run may prefer another token than a server that rounds like it, at least."""


def total(row: ConfigurationDistance, *, share: float) -> float:
    """One figure for both parts; ``share`` of the positions are prefill."""
    return share * (row.prefill or 0.0) + (1 - share) * (row.decoded or 0.0)


def fingerprint(rows: Sequence[ConfigurationDistance], *, prefill_share: float) -> Fingerprint:
    """The configurations that explain the server best.

    Args:
        rows: from :func:`distances`.
        prefill_share: of the positions.
    """
    scores = {i: row.score for i, row in enumerate(rows) if row.score is not None}
    if not scores:
        return Fingerprint()
    far = {index: total(rows[index], share=prefill_share) for index in scores}
    fitting = sorted((index for index in scores if rows[index].fits), key=scores.__getitem__)
    if not fitting:
        return Fingerprint(nearest=min(far, key=far.__getitem__))
    best = fitting[0]
    likeness = rows[best].likeness
    is_near = likeness is None or likeness >= SAME_KERNELS
    limit = max(FLOAT32_NOISE, TOLD_APART_FACTOR * far[best]) if is_near else math.inf
    like = [index for index in fitting if index == best or far[index] <= limit]
    if not is_near:  # a server runs a format where somebody asked for it
        like.sort(key=lambda index: rows[index].configuration.has_format)
        best = like[0]
    others = [far[index] for index in scores if index not in like]
    margin = min(others, default=0.0) / max(far[best], FLOAT32_NOISE / 100)
    return Fingerprint(
        like=tuple(like), nearest=best, margin=min(margin, LARGEST) if margin >= 1 else None
    )


def with_contradictions(
    rows: Sequence[ConfigurationDistance],
    answers: Sequence[Answer],
    readings: Mapping[Configuration, Mapping[str, Reading]],
    tokens: Tokens,
) -> tuple[ConfigurationDistance, ...]:
    """The rows, with how much each configuration prefers other tokens than greedy ones."""
    return tuple(
        row
        if row.failure is not None
        else replace(row, contradiction=_contradiction(answers, readings, row, tokens))
        for row in rows
    )


def fingerprint_of_tokens(rows: Sequence[ConfigurationDistance]) -> Fingerprint:
    """The configurations that greedy tokens do not contradict, the nearest first.

    A run contradicts a token where it prefers another one by more than its rounding explains.
    """
    found = {i: row.contradiction for i, row in enumerate(rows) if row.contradiction is not None}
    order = sorted(found, key=found.__getitem__)
    return Fingerprint(
        like=tuple(index for index in order if found[index] <= 1),
        nearest=order[0] if order else None,
        by_tokens_alone=True,
    )


def _contradiction(
    answers: Sequence[Answer],
    readings: Mapping[Configuration, Mapping[str, Reading]],
    row: ConfigurationDistance,
    tokens: Tokens,
) -> float:
    own, reference = readings[row.configuration], readings[row.configuration.reference]
    limit = tolerance(answers, own, reference)
    preferred = [
        preferences(answer, own[answer.name], tokens).max(initial=0.0) for answer in answers
    ]
    return min(float(max(preferred)) / limit, LARGEST)


def preferences(answer: Answer, reading: Reading, tokens: Tokens) -> NDArray[np.float64]:
    """By how many nats a run prefers another token at each position, ``(positions,)``.

    Tokens that were made of a text may be cut otherwise than the server cut them: where the run's
    choice begins the same text, it is the same choice, and nothing after it can be compared.
    """
    preferred = reading.top[:, 0] - reading.at_token
    if not answer.is_retokenized:
        return preferred
    for row in np.flatnonzero(reading.rank > 0):
        rest = "".join(tokens.shown(token) for token in answer.generated[row:])
        choice = tokens.shown(int(reading.top_ids[row, 0]))
        is_same_text = bool(choice) and rest.startswith(choice)
        return preferred[: row if is_same_text else row + 1]
    return preferred


def tolerance(
    answers: Sequence[Answer], own: Mapping[str, Reading], reference: Mapping[str, Reading]
) -> float:
    """Nats by which a run may prefer another token than a server that rounds like it does."""
    differences = np.concatenate(
        [own[answer.name].at_token - reference[answer.name].at_token for answer in answers]
    )
    size = float(np.sqrt(np.mean(differences**2)))
    return max(LEAST_TOLERANCE, TOLERANCE_FACTOR * size)
