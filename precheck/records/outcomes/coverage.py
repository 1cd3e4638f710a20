"""What a scan did not look at."""

from __future__ import annotations

from dataclasses import dataclass, field

from precheck.records.outcomes.positions import LongText


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What was not checked, so that silence is not taken as proof."""

    num_ops_watched: int = 0
    unwatched_ops: dict[str, int] = field(default_factory=dict)
    """ATen ops that only move or view data, or give no floating-point result, with counts."""
    probes_not_run: tuple[str, ...] = ()
    longest_probe_tokens: int = 0
    num_tokens: int = 0
    instrumentation: str = ""
    long_text: LongText | None = None
    """The one whose figures the runs have by position."""
    row_by_row: str | None = None
    """The error that batches of several prompts end with, so that each prompt was run alone."""
    not_followed: str | None = None
    """Why key biases and layers' bounds, or the rest of them, are not known without a run."""
