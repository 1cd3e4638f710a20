"""A folder that appears complete or not at all; what it replaces is kept until then."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from precheck.checkpoint.output.folders import check_empty, check_parent
from precheck.checkpoint.output.workspace import NEW, OLD, remove, workspace
from precheck.errors import UsageError, WrittenInterrupted
from precheck.signals import deferred_signals

if TYPE_CHECKING:
    from collections.abc import Iterator

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""**Source**: ``renameat2(2)``, ``fcntl.h`` and ``stdio.h`` of glibc."""


@dataclass(slots=True)
class Unfinished:
    """A folder that is being written, next to its target."""

    folder: Path
    target: Path
    overwrite: bool
    what: str = "checkpoint"
    """Its name in messages."""
    has_taken_place: bool = False

    def take_place(self) -> None:
        """Moves the folder to its target in one step, so that nobody sees half of it.

        Raises:
            OSError: something is there that may not be replaced; it stays.
            UsageError: what was there could not stay, and is kept elsewhere; says where.
        """
        if self.target.is_dir():
            mode = self.target.stat().st_mode & 0o777
            self.folder.chmod(mode | 0o700)  # without write permission it could not be moved
        with deferred_signals():
            try:
                # refused by the system where there is more than an empty folder
                self.folder.rename(self.target)
            except OSError:
                if not self.overwrite:
                    raise
                self._replace()
            self.has_taken_place = True

    def _replace(self) -> None:
        """Changes places with the folder that is there, in one step if the file system can."""
        if not exchange(self.folder, self.target):
            self._take_aside_and_replace()
        elif not _is_folder(self.folder):  # which is now what was there
            exchange(self.folder, self.target)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _take_aside_and_replace(self) -> None:
        if not _is_folder(self.target):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self.target.rename(self.replaced)
        try:
            self.folder.rename(self.target)
        except OSError as error:
            self._put_back(error)
            raise

    def _put_back(self, error: OSError) -> None:
        try:
            self.replaced.rename(self.target)
        except OSError:
            raise UsageError(
                f"cannot write {self.what}: {str(self.target)!r}: {error.strerror}; the folder "
                f"that was there is kept in {str(self.replaced)!r}",
                hint=f"mv {self.replaced} to where you want it",
            ) from error

    @property
    def replaced(self) -> Path:
        """Where the folder that was there lies until the end, if it could not be exchanged."""
        return self.folder.with_name(OLD)


@contextmanager
def unfinished(target: Path, *, overwrite: bool, what: str = "checkpoint") -> Iterator[Unfinished]:
    """A folder next to ``target``; it is deleted at the end unless it has taken its place.

    Args:
        target: where it is to be.
        overwrite: whether it may replace a folder that is not empty.
        what: its name in messages.

    Raises:
        UsageError: something is in the way, or cannot be written, as when the disk is full.
        WrittenInterrupted: Ctrl-C after it has taken its place.
    """
    check_target(target, overwrite=overwrite, what=what)
    draft: Unfinished | None = None
    try:
        place = target.resolve()  # a link stays a link, and no later one is followed
        with workspace(place) as folder:
            try:
                draft = Unfinished(folder / NEW, place, overwrite, what)
                draft.folder.mkdir()
                yield draft
            finally:
                if draft is not None and not draft.has_taken_place and draft.replaced.exists():
                    shutil.rmtree(draft.folder, ignore_errors=True)
                else:
                    remove(folder)
    except OSError as error:
        raise _not_written(target, error, what) from error
    except KeyboardInterrupt as interrupted:
        if draft is not None and draft.has_taken_place:
            raise WrittenInterrupted(target) from interrupted
        raise


def check_target(target: Path, *, overwrite: bool, what: str = "checkpoint") -> None:
    """Checks that a folder can be written there.

    Raises:
        UsageError: it is a file, a folder that is not empty, one that cannot be moved away, or its
            parent does not exist.
    """
    try:
        if target.exists() and not target.is_dir():
            raise UsageError(f"not a folder: {str(target)!r}", hint="choose another path")
        if not overwrite:
            check_empty(
                target,
                what="output folder",
                hint="choose a new folder, or pass --overwrite",
            )
        if Path.cwd().is_relative_to(target.resolve()):
            raise UsageError(
                f"output folder contains the current folder: {str(target)!r}",
                hint="choose a new folder",
            )
        if target.is_mount():
            raise UsageError(
                f"output folder is a mount point, which cannot be replaced: {str(target)!r}",
                hint=f"choose a folder in it: {target / 'fixed'}",
            )
        check_parent(target, hint="choose another path, or create that folder")
    except (OSError, RuntimeError) as error:
        raise _not_written(target, error, what) from error


def exchange(first: Path, second: Path) -> bool:
    """Lets two folders change places in one step; False where that is not possible."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux alone has it
    if renameat2 is None:
        return False
    paths = os.fsencode(first), os.fsencode(second)
    failed: int = renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE)
    return not failed


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _not_written(target: Path, error: Exception, what: str) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UsageError(f"cannot write {what}: {str(target)!r}: {reason}", hint="choose another path")
