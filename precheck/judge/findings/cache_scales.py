"""Findings on the stored scales of keys and values (PC615, PC616)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.judge.thresholds import CLIPPED_RANGE, UNUSED_RANGE
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.quantities import counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.judge.evidence import Evidence
    from precheck.records.stored import CacheScale, ScaleAudit

_E4M3_MAX = 448.0
"""What a key or value divided by its scale may reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCache:
    """The largest key and value of one attention; None where one was not measured."""

    module: str
    key: float | None
    value: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A scale, and what it was compared with."""

    scale: CacheScale
    measured: float
    allowed: float

    @property
    def ratio(self) -> float:
        return self.measured / self.allowed


def uncalibrated(evidence: Evidence) -> Iterator[Finding]:
    """Scales that are 1.0 everywhere, or declared and not stored: then engines take 1.0."""
    scales = evidence.measurements.checkpoint.scales
    are_one = all(scale.smallest == scale.largest == 1.0 for scale in scales.cache)
    if not are_one or not (scales.cache or scales.cache_format):
        return
    names = tuple(scale.name for scale in scales.cache)
    found = (
        f"All {len(names)} stored scales of keys and values are 1.0 ({listed(names)})"
        if names
        else f"config.json declares a cache in {scales.cache_format}, but no scale of keys and "
        "values is stored, and engines take 1.0"
    )
    yield Finding(
        code="PC615",
        severity=Severity.NOTE,
        confidence=Confidence.MEASURED,
        module=names[0] if names else None,
        modules=names,
        message=(
            f"{found}. Nothing was calibrated: a key or value beyond "
            f"{magnitude(_E4M3_MAX)} is cut off in float8_e4m3. Most models stay far below it."
        ),
        advice=(
            "If the key-value cache is to be in float8, compare answers with and without it "
            "(--kv-cache-dtype auto), or export again with calibrated scales "
            "(kv_cache_scheme in llm-compressor)."
        ),
    )


def out_of_measured_range(evidence: Evidence) -> Iterator[Finding]:
    """Scales under which keys or values that were measured do not fit, or hardly show."""
    # a static check, and a report of an earlier version, measured none
    measured = [
        MeasuredCache(module=row.module, key=row.key, value=row.value)
        for row in evidence.measurements.key_values
    ]
    yield from misfits(evidence.measurements.checkpoint.scales, measured)


def misfits(scales: ScaleAudit, measured: Sequence[MeasuredCache]) -> Iterator[Finding]:
    """Findings on stored scales, next to what was measured.

    Args:
        scales: those of keys and values in it.
        measured: the largest ones of each attention, where a run measured them.
    """
    fits = [fit for scale in scales.cache for fit in _fits(scale, measured)]
    clipped = [fit for fit in fits if fit.ratio > CLIPPED_RANGE.value]
    unused = [fit for fit in fits if 0 < fit.ratio < UNUSED_RANGE.value]
    if clipped:
        worst = max(clipped, key=lambda fit: fit.ratio)
        yield _misfit(
            clipped,
            worst,
            severity=Severity.WARNING,
            consequence="What is larger is cut off, or becomes NaN where a kernel does not clamp",
        )
    if unused:
        worst = min(unused, key=lambda fit: fit.ratio)
        yield _misfit(
            unused,
            worst,
            severity=Severity.NOTE,
            consequence="Most of float8's range is not used, and small values lose their digits",
        )


def _misfit(fits: list[_Fit], worst: _Fit, *, severity: Severity, consequence: str) -> Finding:
    names = tuple(fit.scale.name for fit in fits)
    what = "keys" if worst.scale.of_keys else "values"
    return Finding(
        code="PC616",
        severity=severity,
        confidence=Confidence.PREDICTED,
        module=worst.scale.name,
        modules=names,
        message=(
            f"Scales of the cache do not fit what was measured: {counted(len(names), 'scale')} "
            f"({listed(names)}). {worst.scale.name} allows {what} up to "
            f"{magnitude(worst.allowed)} in float8_e4m3; the largest is "
            f"{magnitude(worst.measured)}. {consequence}."
        ),
        advice=(
            "Calibrate the scales again on text like yours, with its chat template; until then "
            "keep the cache in 16 bits (--kv-cache-dtype auto)."
        ),
    )


def _fits(scale: CacheScale, measured: Sequence[MeasuredCache]) -> Iterator[_Fit]:
    for row in measured:
        if not scale.name.startswith(f"{row.module}."):
            continue
        largest = [
            value
            for value, is_scaled in ((row.key, scale.of_keys), (row.value, scale.of_values))
            if is_scaled and value is not None
        ]
        if largest:
            allowed = scale.largest * _E4M3_MAX
            yield _Fit(scale=scale, measured=max(largest), allowed=allowed)
