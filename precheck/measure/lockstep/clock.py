"""How far a scan is, and how long the rest will take."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from precheck.records.progress import Observer, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


ROUNDS = 4
"""How many units back the speed is taken from: runs that stop early make the rest cheaper."""

LOGIT_WORK = 750
"""Multiplications that take as long as comparing one score of the head with its reference's, in
float64: 10 ns, where a product runs at 75 per ns."""


class Clock:
    """Counts the steps of a scan, and tells whoever watches it.

    A step is one run entering one unit with one batch. What it costs is about proportional to the
    parameters of the unit and the tokens of the batch, so what the first units took says what the
    rest will take; a unit without parameters (or an embedding, which is a look-up) counts as
    nothing.

    Args:
        observe: told before every step.
        work: multiplications of every unit for one token.
        num_tokens: tokens that each of these units will see, in all runs together.
        round_steps: steps until all runs have passed a unit.
        bytes_read: bytes of weights read so far.
        total_bytes: bytes of the checkpoint; 0 if weights are in memory.
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
        self._total = sum(each * num_tokens[unit] for unit, each in work.items())
        self._done = 0.0
        self._round_steps = round_steps
        self._marks: deque[tuple[float, float]] = deque(maxlen=ROUNDS * round_steps + 1)
        """Time and work done before each of the last steps."""
        self._bytes_read = bytes_read
        self._total_bytes = total_bytes
        self._now = now

    def tick(self, run: str, unit: str, *, num_tokens: int) -> None:
        """A run is about to enter a unit with so many tokens, or a module inside one."""
        work = self._work.get(unit, 0.0) * num_tokens
        if work:
            self._marks.append((self._now(), self._done))
        self._observe(
            Step(
                run=run,
                unit=unit,
                share=min(1.0, self._done / self._total) if self._total else 1.0,
                seconds_left=self._seconds_left(),
                bytes_read=min(self._bytes_read(), self._total_bytes),
                total_bytes=self._total_bytes,
            )
        )
        self._done += work

    def _seconds_left(self) -> float | None:
        """None until every run has passed the first unit that costs something."""
        # whole rounds: dtypes differ in speed, and each is once in every round
        rounds = max(0, len(self._marks) - 1) // max(1, self._round_steps)
        if not rounds:
            return None
        first, last = self._marks[-1 - rounds * self._round_steps], self._marks[-1]
        rate = (last[0] - first[0]) / (last[1] - first[1])
        return max(0.0, rate * (self._total - last[1]) - (self._now() - last[0]))
