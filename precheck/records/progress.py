"""What a scan tells whoever watches it, while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A sentence on what comes next: a download, the size of the scan."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run is about to enter one unit; ``done`` of ``total`` steps of the scan are behind."""

    run: str
    unit: str
    done: int
    total: int


Observer = Callable[[Announcement | Step], None]
"""Called from the thread that scans; must return quickly and not raise."""
