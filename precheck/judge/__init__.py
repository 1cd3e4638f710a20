"""What the numbers mean: pure functions of records."""

from __future__ import annotations

from precheck.judge.report import judge, judge_again

__all__ = ["judge", "judge_again"]
