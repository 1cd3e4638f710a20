"""How much memory a scan may take, and what it takes beside weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from precheck.measure.models.settings import setting, text_config
from precheck.records.precision import Arithmetic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch

FREE_SHARE = 0.8
"""Of the free memory that a scan takes by itself: the page cache and others need some."""

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_OVERHEAD = 256 << 20
"""Modules of every run over every batch, scratch of matrix libraries, memory that the C library
keeps: measured on scans of 1.5 B and 7 B in six runs."""

_FLOAT32 = 4
_FLOAT64 = 8


def free_bytes(device: str) -> int:
    """Bytes that this process could still take on a device, a container's limit respected.

    Processes that share a scan share the host's memory.
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    free = int(psutil.virtual_memory().available)
    for limit, anonymous in _cgroup_limits():
        free = min(free, limit - anonymous)
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def used_bytes(device: str) -> int:
    """Bytes that this process has on a device; on the host, memory that is no file's."""
    if device.startswith("cuda"):
        return int(torch.cuda.memory_allocated(device))
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def activation_bytes(batches: Sequence[Batch], skeletons: Sequence[Skeleton]) -> int:
    """About what hidden states, the insides of one unit and logits take, from widths alone.

    Every run waits with its hidden states and copies of what its unit was given; one run at a
    time is inside a unit; one batch at a time has logits: its reference's, another's, and a
    chunk in float64. Products in float32 take a copy of their weights.
    """
    model = skeletons[0].model
    linear = [each for each in model.modules() if isinstance(each, nn.Linear)]
    widths = [each.in_features for each in linear] or [1]
    hidden = min(max(widths), setting(text_config(model), "hidden_size") or max(widths))
    inside = max([each.out_features for each in linear[:-1]] or [1])
    head = linear[-1].out_features if linear else 1
    tokens = sum(each.num_positions for each in batches)
    largest = max(each.num_positions for each in batches)
    waiting = 4 * tokens * hidden * sum(each.dtype.limits.num_bytes for each in skeletons)
    inside_one = largest * (8 * inside * _FLOAT32 + 5 * head * _FLOAT32)
    is_native = all(each.arithmetic is Arithmetic.NATIVE for each in skeletons)
    widened = 0 if is_native else max([each.weight.numel() for each in linear[:-1]] or [0])
    return waiting + inside_one + widened * _FLOAT32 + _OVERHEAD


def _cgroup_limits() -> list[tuple[int, int]]:
    """Limit and anonymous memory of every control group this process is in, where there is one."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in {"", "memory"}:
            root = _CGROUPS / controllers
            names = ("memory.max", "anon") if not controllers else ("memory.limit_in_bytes", "rss")
            folder = root / path.lstrip("/")
            while True:
                found += _limit_in(folder, *names)
                if folder == root or root not in folder.parents:
                    break
                folder = folder.parent
    return found


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
