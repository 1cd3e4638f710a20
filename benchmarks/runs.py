"""Runs scans as whole processes and watches them from outside."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CGROUPS = Path("/sys/fs/cgroup")
_INTERVAL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What one process took."""

    exit_code: int
    seconds: float
    processor_seconds: float
    anonymous: tuple[int, ...]
    """Bytes of memory that is no file's, every 50 ms."""
    bytes_from_storage: int
    stderr: str


def watch(command: Sequence[str], *, group: Path | None = None) -> Watched:
    """Runs a command to its end, inside a control group if one is given."""
    start = time.perf_counter()
    anonymous: list[int] = []
    from_storage = 0
    processor = 0.0
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(  # noqa: S603  our own program
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            preexec_fn=None if group is None else lambda: _enter(group),  # noqa: PLW1509
        )
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error, OSError):
                memory = watched.memory_info()
                anonymous.append(memory.rss - memory.shared)
                from_storage = max(from_storage, watched.io_counters().read_bytes)
                times = watched.cpu_times()
                processor = times.user + times.system
            time.sleep(_INTERVAL_SECONDS)
        errors.seek(0)
        said = errors.read()
    return Watched(
        exit_code=process.returncode,
        seconds=time.perf_counter() - start,
        processor_seconds=processor,
        anonymous=tuple(anonymous),
        bytes_from_storage=from_storage,
        stderr=said,
    )


def scan_command(model: Path, *options: str | Path) -> list[str]:
    """``precheck scan`` with this interpreter."""
    return [sys.executable, "-m", "precheck", "scan", str(model), *map(str, options)]


def token_prompts(folder: Path, *, num_tokens: int, vocab_size: int = 151_000) -> Path:
    """A prompts file with one prompt of exactly so many random token ids."""
    chooser = random.Random(0)  # noqa: S311  no secret
    ids = [chooser.randrange(vocab_size) for _ in range(num_tokens)]
    file = folder / f"tokens-{num_tokens}.jsonl"
    file.write_text(json.dumps({"token_ids": ids}) + "\n", encoding="utf-8")
    return file


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[Path]:
    """A control group whose processes the kernel kills above ``num_bytes``; page cache counts."""
    version_1 = _CGROUPS / "memory"
    root = version_1 if version_1.is_dir() else _CGROUPS
    group = root / f"precheck-bench-{os.getpid()}"
    group.mkdir()
    limit = group / ("memory.limit_in_bytes" if version_1.is_dir() else "memory.max")
    try:
        limit.write_text(str(num_bytes))
        yield group
    finally:
        group.rmdir()


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def forget_cached(folder: Path) -> None:
    """Drops a checkpoint's pages from the page cache, so that it is read from storage again."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
