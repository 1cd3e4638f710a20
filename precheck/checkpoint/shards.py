"""A file of tensors: what every format of it offers, and the errors that reading one may raise.

Another source of weights is one more class with the methods of ``Shard``, and one line in
``SHARD_CLASSES`` of ``weights.py``.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from precheck.errors import CheckpointAccessError, CheckpointCorruptError, CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

READ_AHEAD_BYTES = 1 << 21
"""The kernel reads ahead at most this much for one request, however much is requested.

**Source**: ``force_page_cache_ra`` in https://github.com/torvalds/linux/blob/master/mm/readahead.c
"""

_LFS_POINTER = b"version https://git-lfs"
"""**Source**: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""


class Span(NamedTuple):
    """Where bytes lie in a file."""

    start: int
    end: int


class Shard(Protocol):
    """One file of tensors."""

    @property
    def size_bytes(self) -> int:
        """Size of the file."""

    def names(self) -> Sequence[str]:
        """Its tensors."""

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, mapped into memory where the format allows it."""

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        """Copies spans of a tensor's bytes into memory, one after the other.

        Raises:
            CheckpointError: the file ended early or cannot be read any more.
        """

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch tensors, ``limit`` bytes at most; does not wait for them."""

    def check_unchanged(self) -> None:
        """Compares the file with what was opened.

        Raises:
            CheckpointError: it was written to, cut off or replaced.
        """

    def close(self) -> None:
        """Closes the file; tensors already read stay valid."""


class OpenFile:
    """A weights file that was opened: its bytes, and whether it is still what it was.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self._opened_as = os.fstat(self._descriptor)

    @property
    def version(self) -> tuple[int, int]:
        """Its size in bytes, and when it was written to, in nanoseconds."""
        return self._opened_as.st_size, self._opened_as.st_mtime_ns

    def start(self, length: int, position: int) -> bytes:
        """Bytes of its header; fewer than ``length`` where it ends."""
        return os.pread(self._descriptor, length, position)

    def read(self, spans: Iterable[Span], into: memoryview) -> None:
        """Copies spans of the file into memory, one after the other.

        Raises:
            CheckpointError: the file ended early or cannot be read any more.
        """
        filled = 0
        for start, end in spans:
            position = start
            while position < end:
                room = into[filled : filled + end - position]
                try:
                    count = os.preadv(self._descriptor, [room], position)
                except OSError as error:
                    raise unreadable(self._path, error) from error
                if not count:
                    raise changed(self._path, "it was truncated while it was read")
                filled, position = filled + count, position + count

    def read_ahead(self, spans: Iterable[Span], *, limit: int) -> None:
        """Asks the system to fetch spans, ``limit`` bytes at most; does not wait for them."""
        if not hasattr(os, "posix_fadvise"):
            return
        for start, whole_end in spans:
            end = min(whole_end, start + limit)
            limit -= end - start
            for position in range(start, end, READ_AHEAD_BYTES):
                size = min(READ_AHEAD_BYTES, end - position)
                os.posix_fadvise(self._descriptor, position, size, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Compares the file with what was opened.

        Raises:
            CheckpointError: it was written to, cut off or replaced.
        """
        opened, now = self._opened_as, os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != self.version:
            raise changed(self._path, "it was written to while it was read")
        try:
            at_path = self._path.stat()
        except FileNotFoundError:
            return  # deleted: the open file is still complete
        except OSError as error:
            raise unreadable(self._path, error) from error
        if (at_path.st_dev, at_path.st_ino) != (opened.st_dev, opened.st_ino):
            raise changed(self._path, "it was replaced while it was read")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, in the order of its elements."""
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def unreadable(file: Path, error: Exception) -> CheckpointError:
    """The error of ours that stands for what reading a weights file raised."""
    if is_lfs_pointer(file):
        return CheckpointCorruptError(
            f"weights file is a Git LFS pointer, not the weights: {str(file)!r}",
            hint=f"git -C {str(file.parent)!r} lfs pull",
        )
    # EINVAL is what torch raises for a file that ends early
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return CheckpointAccessError(
            f"cannot read weights file: {str(file)!r}: {error.strerror or error}",
            hint="check that the disk or network share is still there, then scan again",
        )
    return CheckpointCorruptError(
        f"weights file truncated or corrupt: {str(file)!r} ({str(error)!r})",
        hint="download or copy this file again",
    )


def changed(file: Path, how: str) -> CheckpointCorruptError:
    """The error for a file that was changed while it was read."""
    return CheckpointCorruptError(
        f"weights file changed: {str(file)!r} ({how})",
        hint="scan again when nothing writes to the checkpoint any more",
    )


def is_lfs_pointer(file: Path) -> bool:
    """Whether Git LFS left its pointer in place of the file."""
    try:
        with file.open("rb") as stream:
            return stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False
