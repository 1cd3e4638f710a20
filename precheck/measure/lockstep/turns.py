"""All runs advance through the real ``model.forward`` together, one unit at a time.

Idea. Every run has its own skeleton and calls its ``forward`` in its own thread. Hooks before and
after each unit stop the thread and wake the coordinator, so that one thread computes at a time and
all runs wait at the same unit. The coordinator knows nothing about the code between the units, so
any architecture works. At a boundary the outputs of all runs are in memory and can be compared.
Weights are loaded and freed there too; where a unit does not fit into memory, the runs also wait
for each other inside it. After the last unit no run waits, so that the logits of all runs need not
be in memory at once.

Assumptions. Runs of one model pass the same units in the same order; where one does not, its
operations have no match. Grad mode and dispatch modes belong to a thread, so each worker enters
its own. What the coordinator does between turns runs in its own thread, which is not watched.

What it cannot see: races between kernels of several runs on one device (one runs at a time).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from precheck.checkpoint.architecture import Unit
    from precheck.measure.models.presence import Presence


class Abandoned(BaseException):
    """Unwinds a worker's forward."""


class Turns:
    """Lets either one worker or the coordinator run, never both."""

    def __init__(self) -> None:
        self._may_run = threading.Semaphore(0)
        self._has_stopped = threading.Semaphore(0)
        self._is_abandoned = False

    def resume(self) -> None:
        """Coordinator: lets the worker run, and waits until it stops again."""
        self._may_run.release()
        self._has_stopped.acquire()

    def wait(self) -> None:
        """Worker: waits for its turn.

        Raises:
            Abandoned: the coordinator gave the forward up.
        """
        self._may_run.acquire()
        self.check()

    def end(self) -> None:
        """Worker: ends its turn, and waits for the next one.

        Raises:
            Abandoned: the coordinator gave the forward up.
        """
        self._has_stopped.release()
        self.wait()

    def finish(self) -> None:
        """Worker: ends its last turn."""
        self._has_stopped.release()

    def abandon(self) -> None:
        """Coordinator: makes the worker leave its forward at the next operation or unit."""
        self._is_abandoned = True
        self._may_run.release()

    def check(self) -> None:
        """Worker: leaves the forward if the coordinator gave it up.

        Raises:
            Abandoned: the coordinator gave the forward up.
        """
        if self._is_abandoned:
            raise Abandoned


class Workload(Protocol):
    """What a worker runs, and what happens around each unit."""

    is_replaying: bool
    """Units are being called a second time, to be examined: these calls are no turns."""

    def run(self) -> None:
        """Calls the model."""

    def enter_unit(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before a unit, with its arguments."""

    def leave_unit(self, unit: Unit, output: Any) -> None:
        """Called after a unit, with its output."""

    def skips(self, unit: Unit) -> bool:
        """Whether a unit is no longer computed, so that it needs no weights."""


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One run in its own thread."""

    name: str
    model: nn.Module
    units: tuple[Unit, ...]
    presence: Presence
    workload: Workload
    turns: Turns = field(default_factory=Turns)
    waiting_at: str = ""
    """The unit at which it waits, or a module inside one; empty before the first."""
    is_entering: bool = False
    """It waits before that module, not after it."""
    error: BaseException | None = None
    is_finished: bool = False
    _thread: threading.Thread | None = None
    _handles: list[RemovableHandle] = field(default_factory=list)

    def start(self) -> None:
        """Hooks the units and starts the thread, which waits for its first turn."""
        for unit in self.units:
            self._hook_unit(unit)
        for name in self.presence.waiting_points:
            self._hook_inside(name)
        self._thread = threading.Thread(
            target=self._work,
            name=f"precheck {self.name}",
            daemon=True,  # a second Ctrl-C may leave it inside a long operation
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, whatever it is doing, and removes every hook."""
        try:
            if self._thread is not None:
                self.turns.abandon()
                if self._thread.is_alive():  # Ctrl-C may come before it was started
                    self._thread.join()
        finally:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def _hook_unit(self, unit: Unit) -> None:
        workload = self.workload

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not workload.is_replaying:
                self._wait_before(unit.name)
            changed = None
            if not workload.skips(unit):
                changed = self.presence.enter(unit.name, args, kwargs)
            if not workload.is_replaying:
                workload.enter_unit(unit, args, kwargs)
            return changed

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self.presence.leave(unit.name, output)
            if not workload.is_replaying:
                workload.leave_unit(unit, output)
                if unit is not self.units[-1]:
                    self.turns.end()

        self._register(unit.name, before, after)

    def _hook_inside(self, name: str) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self.workload.is_replaying:
                self._wait_before(name)
            return self.presence.enter(name, args, kwargs)

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self.presence.leave(name, output)

        self._register(name, before, after)

    def _register(self, name: str, before: Callable[..., Any], after: Callable[..., None]) -> None:
        module = self.model.get_submodule(name)
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _wait_before(self, module: str) -> None:
        self.waiting_at, self.is_entering = module, True
        self.turns.end()
        self.is_entering = False

    def _work(self) -> None:
        try:
            self.turns.wait()
            with torch.no_grad():
                self.workload.run()
        except Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001  the coordinator decides what it means
            self.error = error
        finally:
            self.is_finished = True
            self.turns.finish()


class Schedule(Protocol):
    """Decides in which order the workers run, and is called around each turn."""

    def order(self, waiting: list[Worker]) -> list[Worker]:
        """The workers in the order of their turns: a reference before the runs compared with it."""

    def before(self, worker: Worker) -> None:
        """Called before a worker's turn."""

    def after(self, worker: Worker) -> None:
        """Called when a worker waits again or has finished; may raise to abandon all workers."""


def advance(workers: Sequence[Worker], schedule: Schedule) -> None:
    """Runs every forward to its end, one turn each in every round.

    Leaves no thread and no hook, also when ``schedule`` raises or Ctrl-C arrives.
    """
    try:
        for worker in workers:
            worker.start()
        while waiting := [worker for worker in workers if not worker.is_finished]:
            for worker in schedule.order(waiting):
                schedule.before(worker)
                worker.turns.resume()
                schedule.after(worker)
    finally:
        with ExitStack() as stack:  # a second Ctrl-C must not keep the others from stopping
            for worker in workers:
                stack.callback(worker.stop)
            for worker in workers:  # called first: all are abandoned before one is waited for
                stack.callback(worker.turns.abandon)
