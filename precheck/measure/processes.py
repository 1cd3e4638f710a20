"""Several processes share the probes of a scan: the seam to accelerate.

``accelerate launch --num_processes N -m precheck scan ...`` starts N equal processes. Each reads
the weights for itself, runs its share of the batches, and sends what it found in each batch to the
others. Merged in the order of the batches, that is what a single process would have found.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from precheck.errors import WorkerLostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

_MEETING = timedelta(minutes=10)
"""How long to wait until all processes have started: they start together."""

_WAIT = timedelta(days=7)
"""How long to wait for the slowest process; one that is gone is noticed at once."""


def is_first_process() -> bool:
    """Whether this process reports: launchers number the processes that share a scan."""
    return os.environ.get("RANK", "0") == "0"


def num_processes() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class SingleProcess:
    """A process that runs every batch."""

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Indices of the batches that this process runs."""
        return list(range(len(sizes)))

    def exchange(self, results: Any) -> list[Any]:
        """The results of every process."""
        return [results]


class ProcessGroup:
    """One process of several; all of them make it at the same step.

    Args:
        device: where this process computes.

    Raises:
        WorkerLostError: the others do not start, or are gone.
    """

    def __init__(self, device: str) -> None:
        # accelerate and torch.distributed take a second to import: only when they are needed
        from accelerate import PartialState  # noqa: PLC0415
        from torch.distributed import new_group  # noqa: PLC0415

        try:
            self._state = PartialState(cpu=device == "cpu", timeout=_MEETING)
            self._group = new_group(timeout=_WAIT)
        except RuntimeError as error:
            raise lost_worker() from error

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Indices of the batches that this process runs: about the same work for each process.

        Args:
            sizes: tokens of each batch, the same in every process.
        """
        loads = [0] * self._state.num_processes
        own: list[int] = []
        for batch in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
            process = loads.index(min(loads))
            loads[process] += sizes[batch]
            if process == self._state.process_index:
                own.append(batch)
        return sorted(own)

    def exchange(self, results: Any) -> list[Any]:
        """The results of every process, in the order of the processes.

        Raises:
            WorkerLostError: another process is gone.
        """
        from torch.distributed import all_gather_object  # noqa: PLC0415

        of_all: list[Any] = [None] * self._state.num_processes
        try:
            all_gather_object(of_all, results, group=self._group)
        except RuntimeError as error:  # the connection to it was closed
            raise lost_worker() from error
        return of_all


def lost_worker() -> WorkerLostError:
    """The error of a process that ended before it sent what it had found."""
    count = os.environ.get("WORLD_SIZE", "?")
    return WorkerLostError(
        f"one of {count} processes was lost, and its share of the probes with it",
        hint="check its output, or scan with fewer processes",
    )


@contextmanager
def processes(device: str) -> Iterator[SingleProcess | ProcessGroup]:
    """The processes that share this scan.

    A launcher sends the others a signal when one process is gone. That signal becomes an error, so
    that what was measured until then is kept.

    Raises:
        WorkerLostError: at any step, another process is gone.
    """
    if num_processes() <= 1:
        yield SingleProcess()
        return

    def end(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise lost_worker()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield ProcessGroup(device)
    finally:
        signal.signal(signal.SIGTERM, before)
