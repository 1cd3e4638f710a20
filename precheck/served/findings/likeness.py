"""What the server is like: another checkpoint, a drift, none (PC810, 811, 816, 820)."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from precheck.records.finding import Severity
from precheck.records.quantities import nats, percent
from precheck.served.compared import compare
from precheck.served.findings.written import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.finding import Finding
    from precheck.records.outcomes.served import ConfigurationDistance
    from precheck.served.evidence import Evidence

MOST_OF_ANOTHER = 0.5
"""Share of first choices that two checkpoints have in common at most. Rounding changes 2%, 4-bit
weights 15%; two models of one family trained apart share about a third."""
DRIFT = 4.0
"""How many times farther generated tokens are than prompts, at least."""


def drifting(evidence: Evidence) -> Iterator[Finding]:
    """Prompts agree with a configuration, and what follows does not: the cache."""
    if evidence.fits:
        return
    row = _agrees_at_first(evidence)
    if row is None or row.decoded is None or row.prefill is None or row.expected is None:
        return
    first = _first_drifting(evidence, row)
    yield finding(
        evidence,
        "PC816",
        f"prompts agree with {row.configuration} ({nats(row.prefill)} nat), generated tokens do"
        f" not ({nats(row.decoded)} nat, {nats(row.expected)} is rounding){first}. Only they read"
        " the server's key-value cache: it is stored in a format, or is wrong.",
        advice=_about_the_cache(evidence),
    )


def _about_the_cache(evidence: Evidence) -> str:
    if any(row.kv_cache_dtype is not None for row in evidence.rows):
        return "It is no measured format of the cache: report it to the engine: -o bug.md."
    return f"Compare with formats of the cache: {_with(evidence, '--kv-cache-dtype all')}."


def _with(evidence: Evidence, flags: str) -> str:
    """How to compare with more runs: of weights that are here, or of a scan that saves them."""
    return f"precheck scan MODEL {flags} --save-logits FILE" if evidence.is_saved else flags


def _agrees_at_first(evidence: Evidence) -> ConfigurationDistance | None:
    """The configuration that prompts agree with best and that what follows does not."""
    found = [
        (row.prefill, row)
        for row in evidence.rows
        if row.kv_cache_dtype is None
        and row.prefill is not None
        and row.decoded is not None
        and row.expected is not None
        and row.prefill <= row.expected < row.decoded
        and row.decoded > DRIFT * row.prefill
    ]
    return min(found, key=lambda each: each[0], default=(0.0, None))[1]


def _first_drifting(evidence: Evidence, row: ConfigurationDistance) -> str:
    """From which generated token on, in words."""
    own = evidence.readings[row.configuration]
    reference = evidence.readings[row.configuration.reference]
    rows = [
        compare(answer, own[answer.name], reference[answer.name])
        for answer in evidence.told_answers
        if answer.name in own
    ]
    longest = max((len(each.divergence) - each.num_prefill for each in rows), default=0)
    for number in range(longest):
        values = [
            value
            for each in rows
            for value in each.divergence[each.num_prefill + number :][:1]
            if np.isfinite(value)
        ]
        if values and median(values) > (row.expected or 0.0):
            return f", from token {number + 2} on"
    return ""


def another_checkpoint(evidence: Evidence) -> Iterator[Finding]:
    """First choices that have little to do with the checkpoint's."""
    agreement = None if evidence.nearest is None else evidence.nearest.top1_agreement
    if evidence.fits or agreement is None or agreement >= MOST_OF_ANOTHER:
        return
    yield finding(
        evidence,
        "PC811",
        f"another checkpoint is served, or another revision: in {percent(agreement)} of the"
        " positions its first choice is the checkpoint's, which no rounding explains. The tokens"
        " are the same.",
        advice="Compare the engine's model path and revision with the checkpoint's.",
    )


def like_none(evidence: Evidence) -> Iterator[Finding]:
    """No measured configuration explains the answers."""
    row = evidence.nearest
    if evidence.fits or row is None:
        return
    if evidence.fingerprint.by_tokens_alone:
        yield _contradicted(evidence, row)
        return
    far = evidence.mean_divergence() or 0.0
    yield finding(
        evidence,
        "PC810",
        f"the server behaves like none of the measured configurations: the nearest is"
        f" {row.configuration}, {nats(far)} nat away on average, and {nats(row.expected or 0.0)}"
        f" is what other kernels would explain; {percent(row.top1_agreement or 0.0)} of its first"
        " choices are the same. Something is computed that no measured configuration of this"
        " checkpoint computes.",
        advice="Measure the format that it runs, if it has one:"
        f" {_with(evidence, '--kv-cache-dtype all --quantization all')}; otherwise report it to the"
        " engine: -o bug.md.",
    )


def _contradicted(evidence: Evidence, row: ConfigurationDistance) -> Finding:
    return finding(
        evidence,
        "PC810",
        "the server writes tokens that no measured configuration would: the nearest is"
        f" {row.configuration}, and prefers another token by {row.contradiction or 0.0:.1f} times"
        " what rounding explains.",
        advice="Ask an engine that tells log-probabilities, or report it: -o bug.md.",
    )


def tokens_alone(evidence: Evidence) -> Iterator[Finding]:
    """The server tells no log-probabilities."""
    if evidence.is_told or not evidence.readings:
        return
    yield finding(
        evidence,
        "PC820",
        "the server tells no log-probabilities: greedy tokens alone are compared. They contradict"
        " a configuration or are consistent with it; they do not prove one.",
        advice="Start the engine so that it tells them, if it can.",
        severity=Severity.NOTE,
    )
