"""Telling that memory ran out, whichever allocator says so."""

from __future__ import annotations

import torch

from precheck.errors import MemoryExhaustedError
from precheck.probe.skeleton import first_line


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
