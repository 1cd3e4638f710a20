"""Ctrl-C where a library would swallow it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDING = (signal.SIGINT, signal.SIGTERM)


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
