"""What the server writes: sampled, changed by company, no numbers (PC815, PC817, PC818)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precheck.records.finding import Severity
from precheck.records.quantities import counted, listed, nats
from precheck.served.compared import FLOAT32_NOISE
from precheck.served.distance import at_least
from precheck.served.findings.written import finding
from precheck.served.fingerprint import tolerance
from precheck.served.likelihood import MOST_NOISE
from precheck.served.shapes import LEAST_LOG_PROBABILITY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.finding import Finding
    from precheck.records.outcomes.served import Answer, Place
    from precheck.served.evidence import Evidence

LEAST_GAP = 0.01
"""Nats by which a token is less likely than another, more than any rounding of what is told."""
LEAST_REPEATED = 8
"""The same token so often is no text."""


def sampled(evidence: Evidence) -> Iterator[Finding]:
    """Tokens that the server itself finds less likely than others, although temperature is 0."""
    places = [
        (answer.name, place)
        for answer in evidence.written + evidence.in_company
        for place in answer.generated_places
        if place.is_told
    ]
    chosen = [name for name, place in places if _gap(place) > LEAST_GAP]
    if chosen:
        names = tuple(dict.fromkeys(chosen))
        yield finding(
            evidence,
            "PC815",
            f"{counted(len(chosen), 'generated token')} of {len(places):,} are not the likeliest"
            f" by the server's own words, although temperature 0 was asked for ({listed(names)}):"
            " they are sampled.",
            advice="Look for a default of the engine that wins over the request.",
            probes=names,
        )
        return
    names = tuple(_changed(evidence, is_sure=True))
    if names and not evidence.is_told:
        yield finding(
            evidence,
            "PC815",
            f"the same prompt is answered differently ({listed(names)}), although temperature 0"
            " was asked for and the checkpoint is sure of its choice: tokens are sampled.",
            advice="Look for a default of the engine that wins over the request.",
            probes=names,
        )


def _gap(place: Place) -> float:
    """By how many nats another token is likelier than the one that was chosen."""
    known = dict(zip(place.ids, place.log_probabilities, strict=True))
    own, best = known.get(place.token), place.log_probabilities[0]
    if own is None or best is None or own <= LEAST_LOG_PROBABILITY:
        return 0.0
    return best - own


def changed_by_company(evidence: Evidence) -> Iterator[Finding]:
    """Answers that differ when the same prompt is sent again, among others."""
    by_name = {answer.name: answer for answer in evidence.in_company}
    worst = {
        answer.name: _from_company(answer, by_name[answer.name])
        for answer in evidence.told_answers
        if answer.name in by_name
    }
    limit = max(evidence.noise, MOST_NOISE * FLOAT32_NOISE)
    names = tuple(name for name, far in worst.items() if far > limit)
    if not evidence.is_told:
        names = tuple(_changed(evidence, is_sure=False))
        if names and not list(sampled(evidence)):
            yield _company(evidence, names, "it writes other tokens")
    elif names and not list(sampled(evidence)):
        figure = f"{nats(max(worst.values()))} nat apart, where {nats(limit)} is rounding"
        yield _company(evidence, names, figure)


def _company(evidence: Evidence, names: tuple[str, ...], figure: str) -> Finding:
    return finding(
        evidence,
        "PC817",
        f"the same prompt is answered differently when it is sent again among others ({figure};"
        f" {listed(names)}): what else the engine computes, or has cached, changes answers.",
        advice="Ask again with --concurrency 1; if that is silent it is the batch, otherwise the"
        " prefix cache.",
        severity=Severity.WARNING,
        probes=names,
    )


def _from_company(alone: Answer, again: Answer) -> float:
    """Mean KL(alone || again) over the positions with the same text before, nats."""
    same = 0
    for one, other in zip(alone.generated, again.generated, strict=False):
        same += 1
        if one != other:
            break
    places = zip(
        alone.prompt_places + alone.generated_places[:same],
        again.prompt_places + again.generated_places[:same],
        strict=False,
    )
    divergences = [_apart(one, other) for one, other in places if one.is_told and other.is_told]
    return float(np.mean(divergences)) if divergences else 0.0


def _apart(one: Place, other: Place) -> float:
    """KL of the tokens that both tell, the others as one."""
    second = dict(zip(other.ids, other.log_probabilities, strict=True))
    both = [
        (value, second[token])
        for token, value in zip(one.ids, one.log_probabilities, strict=True)
        if token in second
    ]
    columns = np.array(both, dtype=np.float64).reshape(-1, 2)
    return float(at_least(columns[None, :, 0], columns[None, :, 1])[0])


def _changed(evidence: Evidence, *, is_sure: bool) -> Iterator[str]:
    """Prompts whose answer has another token in company.

    Args:
        evidence: of the server.
        is_sure: only where the nearest configuration prefers its choice by more than rounding.
    """
    by_name = {answer.name: answer for answer in evidence.in_company}
    nearest = evidence.nearest
    for answer in evidence.answers:
        again, reading = by_name.get(answer.name), evidence.reading(answer)
        if again is None or reading is None or nearest is None:
            continue
        pairs = enumerate(zip(answer.generated, again.generated, strict=False))
        first = next((i for i, (one, other) in pairs if one != other), None)
        if first is None:
            continue
        row = len(answer.prompt_places) + first
        margin = float(reading.top[row, 0] - reading.top[row, 1])
        own = evidence.readings[nearest.configuration]
        reference = evidence.readings[nearest.configuration.reference]
        limit = tolerance([answer], own, reference)
        if margin > limit or not is_sure:
            yield answer.name


def no_numbers(evidence: Evidence) -> Iterator[Finding]:
    """Log-probabilities that are no numbers, one token again and again, or nothing at all."""
    broken = [
        (answer.name, len(answer.prompt) - len(answer.prompt_places) + row)
        for answer in evidence.written + evidence.in_company
        for row, place in enumerate(answer.places)
        if place.ids and not place.is_told
    ]
    endless = [answer for answer in evidence.written if _is_endless(answer, evidence)]
    empty = [answer.name for answer in evidence.written if not answer.generated_text.strip()]
    words = []
    if broken:
        name, position = broken[0]
        where = f"the first is position {position} of prompt {name}"
        words.append(f"{counted(len(broken), 'position')} without a number, {where}")
    if endless:
        token = endless[0].generated[0]
        words.append(
            f"only token {token} ({evidence.tokens.shown(token)!r}) after {endless[0].name}"
        )
    if empty and len(empty) == len(evidence.written) and not evidence.compared:
        words.append("nothing at all after any prompt")
    if not words:
        return
    names = [name for name, _ in broken] + [answer.name for answer in endless] + empty
    yield finding(
        evidence,
        "PC818",
        f"the server's answers are no text: {'; '.join(words)}. Its logits are NaN, which engines"
        f" turn into token 0, random text or nothing, with HTTP 200.{_same_here(evidence)}",
        advice="See which operation overflows: precheck scan MODEL.",
        probes=tuple(dict.fromkeys(names)),
    )


def _is_endless(answer: Answer, evidence: Evidence) -> bool:
    """What NaN becomes, again and again, where no log-probability says that it is none."""
    written = set(answer.generated)
    if answer.places or len(answer.generated) < LEAST_REPEATED or len(written) != 1:
        return False
    reading = evidence.reading(answer)
    is_own = reading is not None and bool((reading.rank == 0).mean() > 1 / 2)
    return written <= {0, *evidence.tokens.special} and not is_own


def _same_here(evidence: Evidence) -> str:
    """Whether a measured configuration is broken too: then it is the model."""
    broken = [str(row.configuration) for row in evidence.rows if row.failure is not None]
    if not broken:
        return " No measured configuration of the checkpoint does so: it is the engine."
    return f" So are those of {listed(tuple(broken))}: it is the model in this configuration."
