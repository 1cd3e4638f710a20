"""What was done to probabilities before they were told or chosen from (PC812 to PC814)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from precheck.records.quantities import percent
from precheck.served.findings.written import finding
from precheck.served.shapes import LEAST_LOG_PROBABILITY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from precheck.records.finding import Finding
    from precheck.served.evidence import Evidence

LEAST_CANDIDATES = 3
"""Told tokens that a position needs for a line through them."""
LEAST_SLOPE = 0.02
"""Of a slope from 1: a temperature that anybody sets is farther."""
MOST_LEFT = 0.2
"""Share of the squared differences that may remain when a cause is taken out."""
LEAST_PENALTY = 0.02
"""Nats."""
PENALTY_ERRORS = 5.0
"""Standard errors."""
NO_TAIL = 1e-6
"""Probability of all untold tokens where they were cut off."""
SOME_TAIL = 1e-4
"""The same of the checkpoint, where something was there to cut."""
MOST_POSITIONS = 0.8
"""Share of the positions that show it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Rows:
    """Told tokens of all positions, one after the other, each ``(tokens,)``."""

    server: NDArray[np.float64]
    """Log-probabilities less their mean at the position."""
    run: NDArray[np.float64]
    occurred: NDArray[np.bool_]
    """Whether the token stands in the text before."""
    position: NDArray[np.int64]

    @property
    def slope(self) -> float:
        """Of a line through the origin."""
        return float(self.run @ self.server / (self.run @ self.run))

    def left(self, slope: float) -> float:
        """Sum of squared differences that remain with a slope."""
        rest = self.server - slope * self.run
        return float(rest @ rest)


def scaled(evidence: Evidence) -> Iterator[Finding]:
    """Log-probabilities that are a multiple of the checkpoint's: a temperature, a scale."""
    rows = _rows(evidence)
    if rows is None or evidence.fits:
        return
    slope = rows.slope
    if abs(slope - 1) < LEAST_SLOPE or rows.left(slope) > MOST_LEFT * rows.left(1.0):
        return
    yield finding(
        evidence,
        "PC812",
        f"the server's logits are the checkpoint's times {slope:.3f}: a temperature of"
        f" {1 / slope:.2f} that nobody asked for, or a scale that is missing or applied twice."
        f" That explains {percent(1 - rows.left(slope) / rows.left(1.0))} of the squared"
        " differences.",
        advice="Ask for raw log-probabilities; then look for a logit scale in config.json"
        " (logit_scale, logits_scaling) that the engine treats otherwise.",
    )


def penalised(evidence: Evidence) -> Iterator[Finding]:
    """Tokens that occurred before and are told less likely than they are, or more."""
    rows = _rows(evidence)
    if rows is None or evidence.fits or not 0 < rows.occurred.sum() < len(rows.occurred):
        return
    difference = rows.server - rows.run
    # each position's differences are relative to one another, so the shift is estimated inside
    inside = _inside(rows.occurred.astype(np.float64), rows.position)
    weight = float(inside @ inside)
    if not weight:
        return
    shift = float(inside @ difference / weight)
    rest = difference - shift * inside
    error = float(np.sqrt(rest @ rest / max(1, len(rest) - 1) / weight))
    explained = 1 - float(rest @ rest) / max(float(difference @ difference), 1e-300)
    if abs(shift) < LEAST_PENALTY or abs(shift) < PENALTY_ERRORS * error or explained < 1 / 2:
        return
    what = "less" if shift < 0 else "more"
    yield finding(
        evidence,
        "PC814",
        f"tokens that occurred before are told {abs(shift):.2g} nat {what} likely than the"
        " checkpoint finds them: a repetition, presence or frequency penalty that nobody asked"
        f" for. It explains {percent(explained)} of the squared differences.",
        advice="Look for a penalty in generation_config.json, which engines take defaults from.",
    )


def cut_off(evidence: Evidence) -> Iterator[Finding]:
    """No probability is left for unlikely tokens."""
    if evidence.fits:
        return
    counts: list[int] = []
    num_places = 0
    for answer in evidence.told_answers:
        reading = evidence.reading(answer)
        for row, place in enumerate(answer.places if reading is not None else ()):
            values = np.array([one for one in place.log_probabilities if one is not None])
            if not place.is_told or not values.size:
                continue
            num_places += 1
            has = values > LEAST_LOG_PROBABILITY
            assert reading is not None  # noqa: S101
            kept = np.exp(reading.at_told[row, : len(values)][has]).sum()
            if 1 - np.exp(values[has]).sum() <= NO_TAIL and 1 - kept >= SOME_TAIL:
                counts.append(int(has.sum()))
    if not num_places or len(counts) < MOST_POSITIONS * num_places:
        return
    same = len(set(counts)) == 1
    how = f"top-k = {counts[0]}" if same else "top-p or min-p"
    yield finding(
        evidence,
        "PC813",
        f"unlikely tokens have no probability at all ({how}): in {len(counts):,} of"
        f" {num_places:,} positions the told tokens sum to 1, which the checkpoint's do not. The"
        " log-probabilities are those after processing.",
        advice="Ask for raw log-probabilities, or without top-k, top-p and min-p.",
    )


def _rows(evidence: Evidence) -> _Rows | None:
    """Every told token next to the nearest configuration's; None without any."""
    server: list[NDArray[np.float64]] = []
    run: list[NDArray[np.float64]] = []
    occurred: list[NDArray[np.bool_]] = []
    position: list[NDArray[np.int64]] = []
    number = 0
    for answer in evidence.told_answers:
        reading = evidence.reading(answer)
        text = answer.prompt + answer.generated
        first = len(answer.prompt) - len(answer.prompt_places)
        for row, place in enumerate(answer.places if reading is not None else ()):
            assert reading is not None  # noqa: S101
            own = reading.at_told[row, : len(place.ids)]
            values = np.array([np.nan if one is None else one for one in place.log_probabilities])
            kept = np.isfinite(own) & (values > LEAST_LOG_PROBABILITY)
            if kept.sum() < LEAST_CANDIDATES:
                continue
            server.append(values[kept] - values[kept].mean())
            run.append(own[kept] - own[kept].mean())
            before = set(text[: first + row])
            occurred.append(np.array([token in before for token in place.ids])[kept])
            position.append(np.full(int(kept.sum()), number))
            number += 1
    if not number:
        return None
    return _Rows(
        server=np.concatenate(server),
        run=np.concatenate(run),
        occurred=np.concatenate(occurred),
        position=np.concatenate(position),
    )


def _inside(values: NDArray[np.float64], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values less their mean at the position."""
    counts = np.bincount(position)
    return values - (np.bincount(position, weights=values) / counts)[position]
