"""What a self-test found: about precheck on this machine, and about the device itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was tried."""

    what: str
    holds: bool
    found: str
    """The outcome, in words."""
    is_needed: bool = True
    """Verdicts cannot be trusted without it; otherwise it only describes the device."""
