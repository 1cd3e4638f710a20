"""Turns and workers: one at a time, in order, and none left whatever happens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from precheck.checkpoint.architecture import Unit
from precheck.measure.lockstep.turns import Abandoned, Turns, Worker, advance
from precheck.measure.models.presence import ResidentPresence
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WAIT = 5.0
"""Seconds after which a thread that should have ended is taken for stuck."""


class InOrder:
    """Runs the workers as they come, and calls ``before`` ahead of each turn."""

    def __init__(self, before: Callable[[Worker], None] = lambda _: None) -> None:
        self._before = before

    def order(self, waiting: list[Worker]) -> list[Worker]:
        return waiting

    def before(self, worker: Worker) -> None:
        self._before(worker)

    def after(self, _worker: Worker) -> None:
        pass


class ThreeLinears:
    """A workload: three linears in a row, and a journal of what happens."""

    def __init__(
        self,
        name: str,
        journal: list[str],
        *,
        act: Callable[[str], None] = lambda _: None,
        num_units: int = 3,
    ) -> None:
        self.is_replaying = False
        self.model = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.worker = Worker(
            name=name,
            model=self.model,
            units=tuple(
                Unit(name=str(index), section=Section.DECODER, is_block=True) for index in range(3)
            ),
            presence=ResidentPresence(),
            workload=self,
        )
        self._journal, self._act, self._num_units = journal, act, num_units

    def skips(self, _unit: Unit) -> bool:
        return False

    def run(self) -> None:
        self._note("begin")
        hidden = torch.ones(1, 2)
        for module in self.model[: self._num_units]:
            hidden = module(hidden)
        self._note("end")

    def enter_unit(self, unit: Unit, args: Any, kwargs: Any) -> None:
        assert len(args) == 1
        assert kwargs == {}
        self._note(f"enter {unit.name}")

    def leave_unit(self, unit: Unit, output: Any) -> None:
        assert output.shape == (1, 2)
        assert not output.requires_grad
        self._note(f"leave {unit.name}")

    def _note(self, what: str) -> None:
        self._journal.append(f"{self.worker.name} {what}")
        self._act(what)


def is_clean(*runs: ThreeLinears) -> bool:
    modules = [module for run in runs for module in run.model]
    return not any(module._forward_hooks or module._forward_pre_hooks for module in modules)  # noqa: SLF001


def workers(*runs: ThreeLinears) -> list[Worker]:
    return [run.worker for run in runs]


@pytest.fixture(autouse=True)
def no_thread_is_stuck() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_runs_wait_at_the_same_unit_reference_first() -> None:
    journal: list[str] = []
    one, two = ThreeLinears("one", journal), ThreeLinears("two", journal)
    turns: list[tuple[str, str, bool]] = []
    advance(
        workers(one, two),
        InOrder(
            lambda worker: turns.append((worker.name, worker.waiting_at, worker.is_entering)),
        ),
    )
    # after the last unit nobody waits: a run is finished before the next one has logits
    steps = [
        ["begin"],
        ["enter 0", "leave 0"],
        ["enter 1", "leave 1"],
        ["enter 2", "leave 2", "end"],
    ]
    assert journal == [
        f"{name} {event}" for step in steps for name in ("one", "two") for event in step
    ]
    assert turns[:2] == [("one", "", False), ("two", "", False)]
    assert turns[2:6] == [
        ("one", "0", True),
        ("two", "0", True),
        ("one", "0", False),
        ("two", "0", False),
    ]
    assert is_clean(one, two)
    assert one.worker.is_finished
    assert one.worker.error is None


def test_only_one_runs_at_a_time() -> None:
    running: list[str] = []

    def alone(what: str) -> None:
        running.append(what)
        assert len(running) == 1
        running.pop()

    runs = [ThreeLinears(str(index), [], act=alone) for index in range(3)]
    advance(workers(*runs), InOrder())
    assert all(run.worker.error is None for run in runs)


@pytest.mark.parametrize("where", ["begin", "enter 0", "leave 1", "end"])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_worker_that_raises_leaves_the_others_running(where: str, error: BaseException) -> None:
    def fail(what: str) -> None:
        if what == where:
            raise error

    journal: list[str] = []
    broken, whole = ThreeLinears("broken", journal, act=fail), ThreeLinears("whole", journal)
    advance(workers(broken, whole), InOrder())
    assert broken.worker.error is error
    assert broken.worker.is_finished
    assert whole.worker.error is None
    assert journal[-1] == "whole end"
    assert is_clean(broken, whole)


def test_a_worker_that_finishes_early_is_not_waited_for() -> None:
    journal: list[str] = []
    short, long = ThreeLinears("short", journal, num_units=1), ThreeLinears("long", journal)
    advance(workers(short, long), InOrder())
    assert journal[-1] == "long end"
    assert journal.index("short end") < journal.index("long enter 1")
    assert short.worker.error is long.worker.error is None


@pytest.mark.parametrize("turn", range(12))
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_every_worker_is_abandoned_when_the_coordinator_stops(
    turn: int, error: type[BaseException]
) -> None:
    count = iter(range(100))

    def stop(_: Worker) -> None:
        if next(count) == turn:
            raise error

    runs = ThreeLinears("one", []), ThreeLinears("two", [])
    with pytest.raises(error):
        advance(workers(*runs), InOrder(stop))
    assert is_clean(*runs)
    assert all(run.worker.error is None for run in runs)
    assert all(run.worker.is_finished for run in runs)


def test_a_second_interrupt_while_stopping_leaves_no_thread_and_no_hook() -> None:
    runs = ThreeLinears("one", []), ThreeLinears("two", [])
    first, second = (run.worker for run in runs)
    abandon = first.turns.abandon

    def interrupted_again() -> None:
        abandon()
        raise KeyboardInterrupt

    def stop(worker: Worker) -> None:
        if worker is second:
            first.turns.abandon = interrupted_again  # type: ignore[method-assign]
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            advance([first, second], InOrder(stop))
        deadline = threading.Event()
        deadline.wait(0.2)
        names = [thread.name for thread in threading.enumerate()]
        left = [name for name in names if name.startswith("precheck ")]
        assert left == []
        assert is_clean(*runs)
    finally:
        first.turns.abandon = abandon  # type: ignore[method-assign]
        first.stop()
        second.stop()


def test_an_abandoned_worker_leaves_at_its_next_operation() -> None:
    turns = Turns()
    turns.check()
    turns.abandon()
    with pytest.raises(Abandoned):
        turns.check()
    with pytest.raises(Abandoned):
        turns.wait()


def test_a_replay_is_no_turn() -> None:
    journal: list[str] = []
    run = ThreeLinears("one", journal)

    def again(what: str) -> None:
        if what == "leave 0":
            run.is_replaying = True
            run.model[0](torch.ones(1, 2))
            run.is_replaying = False

    run._act = again  # noqa: SLF001
    advance(workers(run), InOrder())
    assert journal.count("one enter 0") == journal.count("one leave 0") == 1
    assert run.worker.error is None


def test_a_worker_computes_without_gradients_whatever_the_caller_does() -> None:
    modes: list[bool] = []
    run = ThreeLinears("one", [], act=lambda _: modes.append(torch.is_grad_enabled()))
    with torch.enable_grad():
        advance(workers(run), InOrder())
    assert set(modes) == {False}


def test_a_unit_that_is_not_there_leaves_no_thread_and_no_hook() -> None:
    whole, broken = ThreeLinears("whole", []), ThreeLinears("broken", [])
    broken.worker.units += (Unit(name="9", section=Section.DECODER, is_block=True),)
    with pytest.raises(AttributeError):
        advance(workers(whole, broken), InOrder())
    assert is_clean(whole, broken)
