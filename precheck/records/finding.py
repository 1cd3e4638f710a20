"""A finding: a sentence with a code, a severity and how sure precheck is."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from precheck.records.traces import Section


class Severity(StrEnum):
    """How much a finding matters, gravest first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Confidence(StrEnum):
    """Where a finding comes from."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    DOCUMENTED = "documented"


class Verdict(StrEnum):
    """What a run amounts to; the first that holds, gravest first."""

    FAILED = "failed"
    OVERFLOW = "overflow"
    DEGRADED = "degraded"
    ABSORBED = "absorbed"
    LOW_HEADROOM = "low_headroom"
    SAFE = "safe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What, where, evidence and consequence in ``message``; what to do in ``advice``."""

    code: str
    severity: Severity
    confidence: Confidence
    message: str
    advice: str
    runs: tuple[int, ...] = ()
    layer: int | None = None
    section: Section | None = None
    module: str | None = None
    source: str | None = None
    probes: tuple[str, ...] = ()
    in_vain: str = ""
    """What people try that does not help."""
