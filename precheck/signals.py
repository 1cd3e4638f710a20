"""Signals to end: told twice they end once, and no library swallows one."""

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

ENDING = (signal.SIGINT, signal.SIGTERM)
SAME_SECONDS = 2.0
"""A launcher that got Ctrl-C too hands it on: what comes this soon is the same one."""


def end_once() -> None:
    """Makes signals to end a ``KeyboardInterrupt``, and the same one told twice a single one.

    The second would be raised where what was measured until the first is kept. SIGTERM is what a
    scheduler sends before it kills. A signal that is ignored (a shell does that for what it runs
    in the background) stays ignored. Only the main thread can do this; in another nothing changes.
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

    for each in ENDING:
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, end)


def _ignore() -> None:
    """What is left is Python's own end, where a signal would only take the exit code away."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Signals to end are heard after the block, and not in it; for blocks that are short.

    ``copy.deepcopy`` needs it: for every dictionary of hooks it passes a bare ``except`` in
    ``copyreg``, and a ``KeyboardInterrupt`` that is raised there is gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread is told of signals
        return
    handlers = {each: signal.getsignal(each) for each in ENDING}
    heard: list[int] = []
    try:
        for each, handler in handlers.items():
            if handler is not None:  # one that was not set from Python could not be set again
                signal.signal(each, lambda number, _frame: heard.append(number))
        yield
    finally:
        for each, handler in handlers.items():
            if handler is not None:
                signal.signal(each, handler)
        if heard:
            signal.raise_signal(heard[0])
