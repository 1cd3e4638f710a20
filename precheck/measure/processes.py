"""Several processes share the probes of a scan: the seam to accelerate.

``accelerate launch --num_processes N -m precheck scan ...`` starts N processes alike. Each reads
the weights for itself, runs its share of the batches, and tells the others what it found, batch
by batch. Merged in the order of the batches, that is what one process would have found.
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
"""How long to wait until all are there: they start alike."""

_WAIT = timedelta(days=7)
"""How long to wait for the slowest share; a process that is gone is noticed at once."""


def is_first_process() -> bool:
    """Whether this process speaks for all: launchers number several that share a scan."""
    return os.environ.get("RANK", "0") == "0"


def num_processes() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Alone:
    """One process that does everything."""

    def share(self, sizes: Sequence[int]) -> list[int]:
        """Which of the batches, by number, are this process's own."""
        return list(range(len(sizes)))

    def exchange(self, found: Any) -> list[Any]:
        """What every process found."""
        return [found]


class Together:
    """One process of several; made by all of them at the same step.

    Args:
        device: where this process computes.

    Raises:
        WorkerLostError: the others do not come.
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
        """Which of the batches, by number, are this process's own: about the same work for all.

        Args:
            sizes: tokens of each batch, the same in every process.
        """
        loads = [0] * self._state.num_processes
        mine: list[int] = []
        for batch in sorted(range(len(sizes)), key=lambda each: (-sizes[each], each)):
            process = loads.index(min(loads))
            loads[process] += sizes[batch]
            if process == self._state.process_index:
                mine.append(batch)
        return sorted(mine)

    def exchange(self, found: Any) -> list[Any]:
        """What every process found, in their order.

        Raises:
            WorkerLostError: another process is gone.
        """
        from torch.distributed import all_gather_object  # noqa: PLC0415

        everything: list[Any] = [None] * self._state.num_processes
        try:
            all_gather_object(everything, found, group=self._group)
        except RuntimeError as error:  # the connection to it was closed
            raise lost_worker() from error
        return everything


def lost_worker() -> WorkerLostError:
    """Another process ended before it had told what it found."""
    count = os.environ.get("WORLD_SIZE", "?")
    return WorkerLostError(
        f"one of {count} processes was lost, and its share of the probes with it",
        hint="look at what it printed, or scan with fewer processes",
    )


@contextmanager
def processes(device: str) -> Iterator[Alone | Together]:
    """The processes of this scan.

    With several, the launcher's signal to end (it sends one when another process is gone) becomes
    an error, so that what was measured until then is kept.

    Raises:
        WorkerLostError: at any step, another process is gone.
    """
    if num_processes() <= 1:
        yield Alone()
        return

    def end(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise lost_worker()

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield Together(device)
    finally:
        signal.signal(signal.SIGTERM, before)
