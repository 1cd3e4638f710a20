"""How far a scan is, and how long the rest will take."""

from __future__ import annotations

from itertools import pairwise

import pytest

from precheck.measure.lockstep.clock import Clock
from precheck.records.progress import Announcement, Step

TOKENS = 100


class Machine:
    """A scan of units that take as long as they have work, on a clock of its own."""

    def __init__(self, seconds: dict[str, float], *, num_runs: int = 3) -> None:
        self.now = 100.0
        self.steps: list[tuple[float, Step]] = []
        self._seconds, self._num_runs = seconds, num_runs

    def run(self, work: dict[str, float]) -> None:
        read = 0

        def observe(event: Announcement | Step) -> None:
            assert isinstance(event, Step)
            self.steps.append((self.now, event))

        clock = Clock(
            observe,
            work=work,
            num_tokens=dict.fromkeys(work, self._num_runs * TOKENS),
            round_steps=self._num_runs,
            bytes_read=lambda: read,
            total_bytes=100,
            now=lambda: self.now,
        )
        for unit, seconds in self._seconds.items():
            read += 30
            for run in range(self._num_runs):
                clock.tick(f"run {run}", unit, num_tokens=TOKENS)
                self.now += seconds


LAYERS = {f"layers.{index}": 2.0 for index in range(20)}


def test_the_time_left_is_right_after_the_first_layers() -> None:
    machine = Machine({"embed": 0.5, **LAYERS, "head": 4.0})
    machine.run({"embed": 0.0, **dict.fromkeys(LAYERS, 50.0), "head": 100.0})
    end = machine.now
    early = [entry for entry in machine.steps if entry[1].unit in {"embed", "layers.0"}]
    assert all(step.seconds_left is None for _, step in early)
    later = [entry for entry in machine.steps if entry not in early]
    for now, step in later:
        assert step.seconds_left == pytest.approx(end - now)


def test_runs_that_stop_make_the_rest_cheaper() -> None:
    slow = {f"layers.{index}": 4.0 for index in range(4)}
    fast = {f"layers.{index}": 2.0 for index in range(4, 20)}
    machine = Machine(slow | fast)
    machine.run(dict.fromkeys(slow | fast, 50.0))
    end = machine.now
    for now, step in machine.steps:
        if step.unit == "layers.10":
            assert step.seconds_left == pytest.approx(end - now)


def test_shares_rise_to_one_and_bytes_stay_within_the_checkpoint() -> None:
    machine = Machine(LAYERS)
    machine.run(dict.fromkeys(LAYERS, 1.0))
    steps = [step for _, step in machine.steps]
    assert steps[0].share == 0
    assert all(one.share <= other.share for one, other in pairwise(steps))
    assert 0.9 < steps[-1].share < 1
    assert [steps[0].bytes_read, steps[-1].bytes_read] == [30, 100]


def test_a_scan_without_work_is_done() -> None:
    machine = Machine({"norm": 1.0})
    machine.run({"norm": 0.0})
    assert [step.share for _, step in machine.steps] == [1.0] * 3
    assert machine.steps[-1][1].seconds_left is None
