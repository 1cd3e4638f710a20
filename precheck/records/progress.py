"""What a scan reports to its observer while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A sentence on what comes next: a download, the size of the scan."""

    text: str
    is_problem: bool = False
    """Something requested cannot be done: announced even where progress is not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run is about to enter one unit."""

    run: str
    unit: str
    share: float
    """Share of the scan's work that is done, 0 to 1."""
    seconds_left: float | None
    """None while nothing is known."""
    bytes_read: int
    """Bytes of weights read so far."""
    total_bytes: int
    """0 if weights are in memory."""


Observer = Callable[[Announcement | Step], None]
"""Called from the thread that scans; must return quickly and not raise."""
