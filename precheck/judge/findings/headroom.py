"""Findings on values that only just fit (PC114)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.findings.cures import cure
from precheck.judge.thresholds import LOW_HEADROOM
from precheck.records.finding import Confidence, Finding, Severity, Verdict
from precheck.records.quantities import bits, listed, magnitude
from precheck.records.tightest import bits_left

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.mechanism import Mechanism
    from precheck.records.precision import Dtype
    from precheck.records.traces import Headroom


def low_headroom(evidence: Evidence) -> Iterator[Finding]:
    """Runs that did not overflow, with less than a bit of headroom: one finding a mechanism."""
    tight: dict[tuple[Dtype, Mechanism], tuple[list[int], list[tuple[float, Headroom]]]] = {}
    for index, run in evidence.with_verdict(Verdict.LOW_HEADROOM):
        for row in evidence.measurements.headroom:
            left = bits_left(row, run.configuration)
            if left is None or left >= LOW_HEADROOM.value:
                continue
            runs, rows = tight.setdefault((run.dtype, row.mechanism), ([], []))
            if index not in runs:
                runs.append(index)
            rows.append((left, row))
    for (dtype, mechanism), (runs, rows) in tight.items():
        rows.sort(key=lambda pair: pair[0])
        left, row = rows[0]
        names = tuple(evidence.runs[index].name for index in runs)
        yield Finding(
            code="PC114",
            severity=Severity.WARNING,
            confidence=Confidence.MEASURED,
            runs=tuple(runs),
            message=(
                f"{listed(names)}: {bits(left)} bits of headroom for {mechanism.phrase} in "
                f"{row.module}, {row.op} at {row.source}. The largest value is "
                f"{magnitude(row.abs_max)}; {dtype}'s maximum is {magnitude(dtype.limits.max)}. "
                "Nothing overflowed with these probes, but another prompt may go higher."
            ),
            advice=(
                "Before you deploy, scan with your own prompts, including the longest (--prompts). "
                + cure(evidence, mechanism, broken=evidence.runs[runs[0]].configuration)
            ),
        ).at(*(row for _, row in rows))
