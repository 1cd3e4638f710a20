"""Findings on what holds for every prompt (PC70x)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.thresholds import NEAR_OVERFLOW
from precheck.records.finding import USABLE, Confidence, Finding, Severity
from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.outcomes.intervals import intervals_of
from precheck.records.precision import Dtype
from precheck.records.quantities import bits, counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence

_LIMIT = Dtype.FLOAT16.limits.max


def proved(evidence: Evidence) -> Iterator[Finding]:
    """Runs in which no operation can overflow, whatever the prompt: one note for all."""
    runs = [(number, run) for number, run in enumerate(evidence.runs) if run.is_proved]
    if not runs:
        return
    assumptions = dict.fromkeys(
        each for _, run in runs if run.proof is not None for each in run.proof.assumptions
    )
    yield Finding(
        code="PC701",
        severity=Severity.NOTE,
        confidence=Confidence.PROVED,
        runs=tuple(number for number, _ in runs),
        message=(
            f"{listed(tuple(run.name for _, run in runs))}: proved for every prompt that no "
            f"operation overflows. It takes for granted: {'; '.join(assumptions) or 'nothing'}."
        ),
        advice=(
            "Longer or other texts need no check of the range; how accurate the run is was "
            "measured on the probes only."
        ),
    )


def near_and_open(evidence: Evidence) -> Iterator[Finding]:
    """Values that came near the limit and are not proved to stay below it: one note a run."""
    for number, run in evidence.with_verdict(*USABLE):
        near = [
            each
            for mechanism in intervals_of(evidence.measurements.headroom, run.configuration)
            for each in mechanism.open
            if each.found < NEAR_OVERFLOW.value and each.status is ProofStatus.OPEN
        ]
        if not near:
            continue
        first = min(near, key=lambda each: each.found)
        left = "there is no bound" if first.proved is None else f"{bits(first.proved)} proved"
        mechanisms = dict.fromkeys(each.row.mechanism for each in near)
        yield Finding(
            code="PC702",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            runs=(number,),
            message=(
                f"{run.name}: another prompt may overflow in {counted(len(near), 'place')} "
                f"({listed(tuple(each.phrase for each in mechanisms))}). The tightest is "
                f"{first.row.module}, which reached {magnitude(first.row.abs_max)}: "
                f"{bits(first.found)} bits of headroom found, {left}."
            ),
            advice="Scan with your own prompts, the longest and the oddest too (--prompts).",
        ).at(*(each.row for each in near))


def scores(evidence: Evidence) -> Iterator[Finding]:
    """Attention scores that norms of queries and keys keep within float16."""
    rows = [row for row in evidence.measurements.layer_bounds if row.scaled_scores is not None]
    scaled = {row.layer: row.scaled_scores or 0.0 for row in rows}
    raw = {row.layer: row.scores or 0.0 for row in rows}
    fitting = {layer: bound for layer, bound in scaled.items() if bound <= _LIMIT}
    if not fitting:
        return
    total = evidence.measurements.model.num_decoder_layers
    layer = max(fitting, key=lambda number: fitting[number])
    highest = max(raw, key=lambda number: raw[number])
    num_raw = sum(bound <= _LIMIT for bound in raw.values())
    materialised = (
        "Eager attention, which materialises them before they are scaled, is proved"
        f"{' too' if num_raw == len(fitting) else f' in {num_raw:,} of these'}: the bound there is "
        f"{magnitude(raw[highest])} in layer {highest}."
    )
    yield Finding(
        code="PC703",
        severity=Severity.NOTE,
        confidence=Confidence.PROVED,
        message=(
            f"In {_share(len(fitting), total)} no text can make scaled attention scores overflow "
            f"in float16: norms of queries and keys bound them, by at most "
            f"{magnitude(fitting[layer])} in layer {layer}. {materialised}"
        ),
        advice="Attention that scales queries first or in its kernel is safe in these layers.",
    )


def _share(count: int, total: int) -> str:
    layers = counted(total, "decoder layer")
    return f"all {layers}" if count == total else f"{count:,} of {layers}"


def residual_stream(evidence: Evidence) -> Iterator[Finding]:
    """What layers can add to the residual stream, where a norm comes before each addition."""
    rows = [row for row in evidence.measurements.layer_bounds if row.added_so_far is not None]
    if not rows:
        return
    last = rows[-1]
    which = counted(len(rows), "layer")
    known = [row for row in rows if row.residual is not None]
    above = next((row for row in known if (row.residual or 0.0) > _LIMIT), None)
    largest = magnitude(known[-1].residual or 0.0) if known else ""
    if not known:
        total = " The embedding comes on top; its size is in a matrix, which --full reads."
    elif above is None:
        total = (
            f" With the embedding, the residual stream is at most {largest}: it cannot overflow in "
            "float16."
        )
    else:
        total = (
            f" With the embedding, the residual stream is at most {largest}; before layer "
            f"{above.layer} it cannot overflow in float16, from there on it is not excluded."
        )
    yield Finding(
        code="PC704",
        severity=Severity.NOTE,
        confidence=Confidence.PROVED,
        message=(
            f"Whatever the text, the first {which} add at most {magnitude(last.added_so_far or 0)} "
            f"to a channel of the residual stream: a norm comes before each addition.{total}"
        ),
        advice="A scan says how much of that text reaches.",
    )
