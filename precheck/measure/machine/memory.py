"""Free and used memory, and recognising that it ran out, whichever allocator reports it."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from precheck.errors import MemoryExhaustedError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def give_back_free_memory() -> None:
    """Returns freed memory that the C library keeps to the system.

    glibc keeps some for each thread, and every run over every batch has a thread: 1.3 of the
    4.3 GiB of a 7 B scan. A call takes about a millisecond, and the memory has to be mapped again:
    a scan that calls this after every step takes 5% longer. Only glibc has the function.
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
    """The error that precheck raises for it; ``doing`` says when, as ``while loading``."""
    return MemoryExhaustedError(
        f"out of memory {doing}: {first_line(error)}",
        hint="measure fewer dtypes with --dtype, or use --quick or another --device",
    )


def free_bytes(device: str) -> int:
    """Bytes that this process can still allocate on a device, within the limit of its container.

    Processes that share a scan get equal parts of the host's memory.
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    free = int(psutil.virtual_memory().available)
    for limit, anonymous in _cgroup_limits():
        free = min(free, limit - anonymous)
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def used_bytes(device: str) -> int:
    """Bytes that this process has on a device; on the host, without mapped files."""
    if device.startswith("cuda"):
        return int(torch.cuda.memory_allocated(device))
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _cgroup_limits() -> list[tuple[int, int]]:
    """Limit and anonymous memory of every control group that this process is in."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "memory"}:
            root = _CGROUPS / controllers
            names = ("memory.max", "anon") if not controllers else ("memory.limit_in_bytes", "rss")
            folder = root / path.lstrip("/")
            while True:
                limits += _limit_in(folder, *names)
                if folder == root or root not in folder.parents:
                    break
                folder = folder.parent
    return limits


def _limit_in(folder: Path, limit_name: str, anonymous_name: str) -> list[tuple[int, int]]:
    try:
        limit = (folder / limit_name).read_text(encoding="utf-8").strip()
        statistics = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    if not limit.isdigit():  # "max"
        return []
    numbers = dict(line.split() for line in statistics)
    return [(int(limit), int(numbers.get(anonymous_name, 0)))]
