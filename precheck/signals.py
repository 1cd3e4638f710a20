"""Signals that end the process: two of them end it once, and no library swallows one."""

from __future__ import annotations

import atexit
import math
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_SECONDS = 2.0
"""A launcher that gets Ctrl-C too forwards it: a second signal this soon is the same one."""


def end_once() -> None:
    """Turn a signal that ends the process into one ``KeyboardInterrupt``, even if it is repeated.

    A second interrupt would be raised while the results so far are being saved. A
    scheduler sends SIGTERM before it kills, a closing terminal SIGHUP. A signal that is ignored
    stays ignored, as in a job that a shell runs in the background, or under ``nohup``.
    Handlers belong to the main thread; in another nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    ended = -math.inf

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ended
        now = time.monotonic()
        if now - ended > SAME_SECONDS:
            ended = now
            atexit.register(_ignore)
            raise KeyboardInterrupt

    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)


def _ignore() -> None:
    """Ignores further signals: while Python shuts down, one would only change the exit code."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Deliver signals that end the process after the block, not inside it; for short blocks.

    ``copy.deepcopy`` needs it: ``copyreg`` has a bare ``except`` that it passes for every
    dictionary of hooks, and a ``KeyboardInterrupt`` raised there is lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    handlers = {number: signal.getsignal(number) for number in ENDING}
    received: list[int] = []
    try:
        for number, handler in handlers.items():
            if handler is not None:  # one that was not set from Python could not be set again
                signal.signal(number, lambda caught, _frame: received.append(caught))
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])
