"""Findings on what a key-value cache in 8 bits would do, predicted from ranges (PC601)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from precheck.judge.thresholds import FP8_SCORE_ROUNDING, USUAL_QUERY
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.quantities import listed, magnitude
from precheck.records.sizes import E4M3_MAX
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.judge.evidence import Evidence
    from precheck.records.sizes import KeyBias, KeyValueRange

_SHARE = 0.1
"""Layers whose scores move by less than this share of the largest move are not named."""


class _Rounded(NamedTuple):
    """An attention whose keys have a bias, and how far its rounding moves the scores, in nats."""

    row: KeyValueRange
    bias: KeyBias
    query: float
    """The largest that was measured, or a usual one."""
    moved: float


def fp8_cache(evidence: Evidence) -> Iterator[Finding]:
    """Keys whose information e4m3 rounds away because of their bias; what it clips."""
    measurements = evidence.measurements
    if not measurements.model.generates or _is_measured(evidence):
        return  # it keeps no cache, or a run says more
    rows = [row for row in measurements.key_values if row.section is Section.DECODER]
    usual = USUAL_QUERY.value if measurements.is_static else None
    rounded = _rounded(rows, usual_query=usual)
    clipped = sorted((row for row in rows if row.is_beyond_e4m3), key=_largest, reverse=True)
    if not rounded and not clipped:
        return
    affected = [*(each.row for each in rounded), *clipped]
    modules = (*(each.bias.name for each in rounded), *(row.module for row in clipped))
    layers = sorted({row.layer for row in affected if row.layer is not None})
    why = ([_rounding(rounded)] if rounded else []) + ([_clipping(clipped)] if clipped else [])
    yield Finding(
        code="PC601",
        severity=Severity.WARNING,
        confidence=Confidence.PREDICTED,
        layer=affected[0].layer,
        section=affected[0].section,
        module=modules[0],
        modules=tuple(dict.fromkeys(modules)),
        message=f"A key-value cache in fp8 would lose accuracy: {' Besides, '.join(why)}",
        advice=_advice(layers, only_clips=not rounded),
    )


def _is_measured(evidence: Evidence) -> bool:
    """Whether a run stored keys and values in e4m3 and gave answers."""
    return any(
        (run.kv_cache_dtype or "").startswith("fp8_e4m3") and run.logits is not None
        for run in evidence.runs
    )


def _rounded(rows: Sequence[KeyValueRange], *, usual_query: float | None) -> list[_Rounded]:
    """Where scores move furthest, if over all layers they move too far; the furthest first.

    Rounding errors of layers are independent of each other, so their squares are summed.

    Args:
        rows: of the decoder.
        usual_query: stands for the largest query where none was measured; None: it is not known.
    """
    moves: list[_Rounded] = []
    for row in rows:
        query = usual_query if row.query is None else row.query
        moved = None if query is None else row.score_rounding_of(query)
        if moved is not None and query is not None and row.key_bias is not None:
            moves.append(_Rounded(row, row.key_bias, query, moved))
    if math.hypot(*(each.moved for each in moves)) < FP8_SCORE_ROUNDING.value:
        return []
    moves.sort(key=lambda each: -each.moved)
    return [each for each in moves if each.moved >= _SHARE * moves[0].moved]


def _rounding(rounded: Sequence[_Rounded]) -> str:
    row, bias, query, moved = rounded[0]
    others = tuple(f"{each.row.layer} ({magnitude(each.moved)})" for each in rounded[1:])
    layers = "layer" if len(others) == 1 else "layers"
    usual = ", a usual size" if row.query is None else ""
    also = f"; also in {layers} {listed(others)}" if others else ""
    return (
        f"{bias.name} has a norm of {magnitude(bias.norm)} and elements up to "
        f"{magnitude(bias.abs_max)}. Every key has it, and e4m3, with three bits behind the "
        "leading one, rounds away what tells one key from another. With queries up to "
        f"{magnitude(query)}{usual}, scores move by up to {magnitude(moved)} nat in layer "
        f"{row.layer}{also}; a calibrated scale does not help."
    )


def _clipping(clipped: Sequence[KeyValueRange]) -> str:
    row = clipped[0]
    what = "key" if row.key == _largest(row) else "value"
    return (
        f"{row.module} has a {what} of {magnitude(_largest(row))}, and e4m3 clips at "
        f"{magnitude(E4M3_MAX)} without a calibrated scale."
    )


def _largest(row: KeyValueRange) -> float:
    return max(row.key or 0.0, row.value or 0.0)


def _advice(layers: Sequence[int], *, only_clips: bool) -> str:
    skipped = " ".join(map(str, layers))
    calibrate = ", or use a checkpoint with calibrated k_scale and v_scale" if only_clips else ""
    return (
        "Leave the cache in 16 bits (--kv-cache-dtype auto, the default of engines), or these "
        f"layers of it (vLLM: --kv-cache-dtype-skip-layers {skipped}){calibrate}. "
        "To measure it, scan with --kv-cache-dtype fp8_e4m3."
    )
