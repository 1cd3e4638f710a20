"""The first position where a server and its nearest configuration part, with both distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precheck.records.outcomes.served import Difference
from precheck.served.likelihood import MOST_NOISE
from precheck.served.readings import compared_places

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from precheck.records.outcomes.served import Answer
    from precheck.served.compared import Compared
    from precheck.served.evidence import Evidence
    from precheck.served.readings import Reading

MOST_SHOWN = 5
"""Tokens of each distribution."""


def first_difference(evidence: Evidence) -> Difference | None:
    """The first of the answer that differs most; None where nothing does.

    A position differs if its divergence is beyond what the nearest configuration's kernels explain,
    or, without log-probabilities, if the run prefers another token.
    """
    nearest = evidence.nearest
    if nearest is None:
        return None
    found: list[tuple[float, Answer, int]] = []
    for answer in evidence.answers:
        reading = evidence.reading(answer)
        if reading is None:
            continue
        row = _first(evidence, answer, reading)
        if row is not None:
            found.append((_size(evidence, answer, reading), answer, row))
    if not found:
        return None
    _, answer, row = max(found, key=lambda each: each[0])
    return _difference(evidence, answer, row)


def _first(evidence: Evidence, answer: Answer, reading: Reading) -> int | None:
    compared = evidence.compared.get(answer.name)
    if compared is None:
        rows = np.flatnonzero(reading.rank > 0)
    else:
        limit = MOST_NOISE * max(evidence.noise, float(np.max(compared.rounding, initial=0.0)))
        rows = np.flatnonzero(_divergence(answer, compared) > limit)
    return int(rows[0]) if rows.size else None


def _size(evidence: Evidence, answer: Answer, reading: Reading) -> float:
    compared = evidence.compared.get(answer.name)
    if compared is None:
        return float((reading.top[:, 0] - reading.at_token).max())
    return float(np.max(_divergence(answer, compared)))


def _divergence(answer: Answer, compared: Compared) -> NDArray[np.float64]:
    """Nats at each position; infinite where a number is missing, 0 where none was told."""
    is_asked = np.array([bool(place.ids) for place in compared_places(answer)])
    return np.where(is_asked, np.nan_to_num(compared.divergence, nan=np.inf), 0.0)


def _difference(evidence: Evidence, answer: Answer, row: int) -> Difference:
    nearest = evidence.nearest
    assert nearest is not None  # noqa: S101  it is what the answer was compared with
    place = compared_places(answer)[row]
    own = evidence.readings[nearest.configuration][answer.name]
    reference = evidence.readings[nearest.configuration.reference][answer.name]
    told = {token: column for column, token in enumerate(place.ids[:MOST_SHOWN])}
    if not place.is_told:  # in no order, for there is no number
        told = {}
    ids = list(told) or [int(token) for token in own.top_ids[row]]
    position = len(answer.prompt) - (len(answer.prompt_places) or 0) + row
    if told:
        server = [place.log_probabilities[column] for column in told.values()]
        of_run = [float(own.at_told[row, column]) for column in told.values()]
        of_reference = [float(reference.at_told[row, column]) for column in told.values()]
    else:
        server = [None] * len(ids)
        of_run = own.top[row].tolist()
        known = dict(zip(reference.top_ids[row], reference.top[row].tolist(), strict=True))
        of_reference = [known.get(token, float("nan")) for token in ids]
    return Difference(
        probe=answer.name,
        position=position,
        token_ids=(answer.prompt + answer.generated)[:position],
        tokens=tuple(evidence.tokens.shown(token) for token in ids),
        ids=tuple(ids),
        server=tuple(server),
        run=tuple(map(_finite, of_run)),
        reference=tuple(map(_finite, of_reference)),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
