"""A hidden folder to write in, beside where the result goes, and what killed processes left there.

Whoever writes holds its lock, which the system releases when the process ends, however it does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = ".precheck-unfinished-"
NEW, OLD = "new", "old"
"""What is being written, and what was taken aside for it where the two cannot change places."""
_LOCK = "lock"
"""Holds the name of the folder that is being written."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """The workspace of a process that was killed."""

    folder: Path
    size_bytes: int


@contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that nobody else can enter, locked until the block ends.

    Whoever finishes removes it (``remove``), or leaves in it what must not be lost.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=target.parent))
    with ExitStack() as held:
        try:
            _take_new_lock(folder, target.name, held)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        yield folder


def _take_new_lock(folder: Path, name: str, held: ExitStack) -> None:
    unlocked = folder / f"{_LOCK}-not-held"
    descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    held.callback(os.close, descriptor)
    os.write(descriptor, os.fsencode(name))
    with suppress(OSError):  # some network shares have no locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    # only now can others find it, so that none takes it for abandoned
    unlocked.rename(folder / _LOCK)


def remove(folder: Path) -> None:
    """Removes a workspace; the lock, by which what is left is found, once nothing else is."""
    contents = [folder / name for name in (NEW, OLD)]
    for content in contents:
        shutil.rmtree(content, ignore_errors=True)
    if not any(map(os.path.lexists, contents)):
        shutil.rmtree(folder, ignore_errors=True)


def find_leftovers(parent: Path) -> tuple[Leftover, ...]:
    """Workspaces in a folder that nobody holds the lock of.

    A folder that one of them had taken aside is put back if its place is empty.
    """
    found = []
    for folder in sorted(parent.glob(f"{PREFIX}*")):
        with _locked(folder) as name:
            if name is None:
                continue
            old = folder / OLD
            with suppress(OSError):
                if old.is_dir() and not os.path.lexists(parent / name):
                    old.rename(parent / name)
            found.append(Leftover(folder=folder, size_bytes=_size(folder)))
    return tuple(found)


def remove_leftover(leftover: Leftover) -> None:
    """Removes it, unless somebody has locked it meanwhile."""
    with _locked(leftover.folder) as name:
        if name is not None:
            remove(leftover.folder)


@contextmanager
def _locked(folder: Path) -> Iterator[str | None]:
    """Takes the lock; gives the name of what was being written, None where somebody else has it."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # it is being made or removed, or is none of ours
        yield None
        return
    try:
        name = None
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            name = Path(os.fsdecode(os.read(descriptor, 4096))).name
        yield name or None
    finally:
        os.close(descriptor)


def _size(folder: Path) -> int:
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += (Path(path) / name).lstat().st_size
    return size
