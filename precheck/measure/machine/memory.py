"""Telling that memory ran out, whichever allocator says so, and giving back what is not used."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

import torch

from precheck.errors import MemoryExhaustedError
from precheck.measure.models.skeleton import first_line

if TYPE_CHECKING:
    from collections.abc import Callable


def give_back_free_memory() -> None:
    """Returns to the system what the C library keeps of freed memory.

    glibc keeps some for each thread, and every run over every batch has a thread: of a 7 B scan's
    4.3 GiB, 1.3 were kept so. A call takes about a millisecond, and the memory has to be touched
    anew: a scan that calls this after every step takes 5% longer. Other C libraries have none.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library; Windows has no CDLL(None)
        return None
    return trim


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had no room."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # the CPU allocator has no exception of its own
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def memory_error(error: BaseException, *, doing: str) -> MemoryExhaustedError:
    """The same in precheck's words; ``doing`` says what, ``while loading``."""
    return MemoryExhaustedError(
        f"out of memory {doing}: {first_line(error)}",
        hint="leave dtypes out with --dtype, use --quick, or another --device",
    )
