"""Imports torch and what a scan needs, for the commands that scan."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

from precheck.records.progress import Announcement

if TYPE_CHECKING:
    from precheck.records.progress import Observer

_M_ARENA_MAX = -8
"""**Source**: https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.h"""


def import_torch(observe: Observer | None = None) -> None:
    """Import what a scan needs, and say so first: it takes seconds.

    The million objects that this creates stay until the end. Keeping the garbage collector away
    from them, during the import and at exit, saves each process 0.7 of 3.0 and 0.75 of 0.9 seconds.
    """
    if "torch" in sys.modules:
        return
    from precheck.libraries import check_libraries

    _share_one_arena()
    if observe is not None:
        observe(Announcement(text="importing torch and transformers"))
    gc.disable()
    try:
        check_libraries()
        for name in ("precheck.checkpoint.source", "precheck.measure.measure"):
            import_module(name)
    finally:
        gc.enable()
    if "triton" not in sys.modules:  # which reports on stderr whatever is not collected
        gc.freeze()


def _share_one_arena() -> None:
    """One heap for all threads: of those that run a model, one computes at a time.

    Each would keep freed memory of its own, 14% of what a scan of a tiny model takes at most.
    Only glibc has the function.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
