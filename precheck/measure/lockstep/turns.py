"""All runs advance through the real ``model.forward`` together, one unit at a time.

Idea. Every run has a skeleton of its own and calls its ``forward`` in a thread of its own. Hooks
before and after each unit hand a baton back to the coordinator, so that one thread computes at a
time and every run stands at the same place. Nothing needs to be known of what happens between
the units, so any architecture works, and at a boundary the outputs of all runs are there to be
compared. That is also where weights come and go; where a unit does not fit, the runs wait for
each other inside it too. After the last unit none waits, so that logits need not all be kept.

Assumptions. Runs of one model pass the same units in the same order; where one does not, its
operations have no match. Grad mode and dispatch modes belong to a thread, so each worker enters
its own. What the coordinator does between turns runs in no watched thread.

What it cannot see: races between kernels of several runs on one device (one runs at a time).
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from precheck.checkpoint.architecture import Unit
    from precheck.measure.models.presence import Presence


class Abandoned(BaseException):
    """Unwinds a worker's forward."""


class Turns:
    """Hands the baton between one worker and the coordinator."""

    def __init__(self) -> None:
        self._go = threading.Semaphore(0)
        self._done = threading.Semaphore(0)
        self._is_abandoned = False

    def give(self) -> None:
        """Coordinator: lets the worker go on, and waits until it stands again."""
        self._go.release()
        self._done.acquire()

    def take(self) -> None:
        """Worker: waits for its first turn."""
        self._go.acquire()
        self.check()

    def pass_on(self) -> None:
        """Worker: stands until the next turn."""
        self._done.release()
        self.take()

    def finish(self) -> None:
        """Worker: will not stand again."""
        self._done.release()

    def abandon(self) -> None:
        """Coordinator: the worker is to leave at the next operation or unit."""
        self._is_abandoned = True
        self._go.release()

    def check(self) -> None:
        """Worker: leaves if it is to.

        Raises:
            Abandoned: the coordinator gave the forward up.
        """
        if self._is_abandoned:
            raise Abandoned


class Passenger(Protocol):
    """What rides on a worker: the forward, and what happens around each unit."""

    is_replaying: bool
    """Units run again to be looked into are no turns."""

    def forward(self) -> None:
        """The whole forward."""

    def enter_unit(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a unit, with what it is given."""

    def leave_unit(self, unit: Unit, output: Any) -> None:
        """After a unit, with what it returned."""

    def skips(self, unit: Unit) -> bool:
        """Whether a unit is not computed any more, so that it needs no weights."""


@dataclass(slots=True, eq=False, kw_only=True)
class Worker:
    """One run's forward in a thread of its own."""

    name: str
    model: nn.Module
    units: tuple[Unit, ...]
    presence: Presence
    passenger: Passenger | None = None
    standing_at: str = ""
    is_entering: bool = False
    """It stands before a unit, not after one."""
    error: BaseException | None = None
    is_finished: bool = False
    turns: Turns = field(default_factory=Turns)
    _thread: threading.Thread | None = None
    _handles: list[RemovableHandle] = field(default_factory=list)

    def start(self) -> None:
        """Hooks the units and starts the thread, which waits for its first turn."""
        assert self.passenger is not None  # noqa: S101  set right after construction
        for unit in self.units:
            self._hook(self.model.get_submodule(unit.name), unit, self.passenger)
        for name in self.presence.waiting_points:
            self._hook_inside(name, self.passenger)
        self._thread = threading.Thread(
            target=self._work,
            args=(self.passenger,),
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

    def _hook(self, module: nn.Module, unit: Unit, passenger: Passenger) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not passenger.is_replaying:
                self._stand(unit.name)
            changed = None
            if not passenger.skips(unit):
                changed = self.presence.enter(unit.name, args, kwargs)
            if not passenger.is_replaying:
                passenger.enter_unit(unit, args, kwargs)
            return changed

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self.presence.leave(unit.name, output)
            if not passenger.is_replaying:
                passenger.leave_unit(unit, output)
                if unit is not self.units[-1]:
                    self.turns.pass_on()

        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _hook_inside(self, name: str, passenger: Passenger) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not passenger.is_replaying:
                self._stand(name)
            return self.presence.enter(name, args, kwargs)

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self.presence.leave(name, output)

        module = self.model.get_submodule(name)
        self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self._handles.append(module.register_forward_hook(after))

    def _stand(self, module: str) -> None:
        self.standing_at, self.is_entering = module, True
        self.turns.pass_on()
        self.is_entering = False

    def _work(self, passenger: Passenger) -> None:
        try:
            self.turns.take()
            with torch.no_grad():
                passenger.forward()
        except Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001  handed to the coordinator, which decides
            self.error = error
        finally:
            self.is_finished = True
            self.turns.finish()


class Rounds(Protocol):
    """Says who goes when, and is told."""

    def order(self, standing: list[Worker]) -> list[Worker]:
        """The workers in the order of their turns: a reference before those it is one for."""

    def before(self, worker: Worker) -> None:
        """A worker is about to go on."""

    def after(self, worker: Worker) -> None:
        """It stands again, or is finished; may raise to give all of them up."""


def advance(workers: Sequence[Worker], rounds: Rounds) -> None:
    """Runs every forward to its end, a turn each in every round.

    Leaves no thread and no hook, also when ``rounds`` raises or Ctrl-C arrives.
    """
    try:
        for worker in workers:
            worker.start()
        while standing := [worker for worker in workers if not worker.is_finished]:
            for worker in rounds.order(standing):
                rounds.before(worker)
                worker.turns.give()
                rounds.after(worker)
    finally:
        with ExitStack() as stack:  # a second Ctrl-C must not keep the others from stopping
            for worker in workers:
                stack.callback(worker.stop)
            for worker in workers:  # called first, so that all are told before one is waited for
                stack.callback(worker.turns.abandon)
