"""How far a scan is, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Self

from precheck.records.progress import Observer, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


ROUNDS = 4
"""The speed is that of the last so many units: runs that stop early make the rest cheaper."""

LOGIT_WORK = 750
"""Multiplications that take as long as comparing one logit with its reference's in float64: 10 ns,
at 75 multiplications a ns."""


class Clock:
    """Counts the steps of a scan and reports each to the observer.

    A step is one run entering one unit with one batch. Its cost is about proportional to the
    parameters of the unit and the tokens of the batch, so the time that the first units took
    predicts that of the rest. A unit without parameters costs nothing, nor does an embedding,
    which is only looked up.

    Args:
        observe: called before every step.
        work: multiplications for one token, by unit.
        num_tokens: tokens that all runs together pass through each of these units.
        round_steps: steps until all runs have passed a unit.
        bytes_read: bytes of weights read so far.
        total_bytes: bytes of the checkpoint; 0 if weights are in memory.
        now: the time in seconds.
    """

    def __init__(
        self,
        observe: Observer,
        *,
        work: Mapping[str, float],
        num_tokens: Mapping[str, int],
        round_steps: int,
        bytes_read: Callable[[], int],
        total_bytes: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._observe = observe
        self._work = work
        self._total_work = sum(per_token * num_tokens[unit] for unit, per_token in work.items())
        self._work_done = 0.0
        self._round_steps = round_steps
        self._marks: deque[tuple[float, float]] = deque(maxlen=ROUNDS * round_steps + 1)
        """Time and work done before each of the last steps."""
        self._bytes_read = bytes_read
        self._total_bytes = total_bytes
        self._now = now

    @classmethod
    def silent(cls) -> Self:
        """Counts nothing."""
        return cls(
            lambda _event: None,
            work={},
            num_tokens={},
            round_steps=0,
            bytes_read=lambda: 0,
            total_bytes=0,
        )

    def tick(self, run: str, unit: str, *, num_tokens: int) -> None:
        """Counts a run's entry into a unit, or into a module inside one, with so many tokens."""
        work = self._work.get(unit, 0.0) * num_tokens
        if work:
            self._marks.append((self._now(), self._work_done))
        self._observe(
            Step(
                run=run,
                unit=unit,
                share=min(1.0, self._work_done / self._total_work) if self._total_work else 1.0,
                seconds_left=self._seconds_left(),
                bytes_read=min(self._bytes_read(), self._total_bytes),
                total_bytes=self._total_bytes,
            )
        )
        self._work_done += work

    def _seconds_left(self) -> float | None:
        """None until every run has passed the first unit that costs something."""
        # whole rounds: dtypes differ in speed, and each is once in every round
        num_rounds = max(0, len(self._marks) - 1) // max(1, self._round_steps)
        if not num_rounds:
            return None
        first_time, first_work = self._marks[-1 - num_rounds * self._round_steps]
        last_time, last_work = self._marks[-1]
        seconds_per_work = (last_time - first_time) / (last_work - first_work)
        seconds = seconds_per_work * (self._total_work - last_work)
        return max(0.0, seconds - (self._now() - last_time))
