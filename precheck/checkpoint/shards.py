"""Files that hold tensors: safetensors and ``torch.save`` files, each opened once."""

from __future__ import annotations

import errno
import json
import os
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open

from precheck.checkpoint.torch_dtypes import dtype_name
from precheck.errors import (
    CheckpointAccessError,
    CheckpointCorruptError,
    CheckpointError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


SAFETENSORS_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""torch's name of a dtype by safetensors' code.

**Source**: ``_TYPES`` in
https://github.com/huggingface/safetensors/blob/main/bindings/python/py_src/safetensors/torch.py
"""

_LFS_POINTER = b"version https://git-lfs"
"""**Source**: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""

READ_AHEAD_BYTES = 1 << 21
"""The kernel reads ahead at most this much for one request, whatever is asked for.

**Source**: ``force_page_cache_ra`` in https://github.com/torvalds/linux/blob/master/mm/readahead.c
"""


class Span(NamedTuple):
    """Where bytes lie in a file."""

    start: int
    end: int


class Shard(Protocol):
    """One file of tensors."""

    def names(self) -> Sequence[str]:
        """Its tensors."""

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor on the CPU, mapped into memory where the format allows it."""

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype."""

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        """Copies spans of a tensor's bytes into memory, one behind the other.

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
        """Gives the file back; tensors already read stay valid."""


class SafetensorsShard:
    """A safetensors file.

    Raises:
        CheckpointError: it cannot be read, or is cut off or corrupt.
    """

    def __init__(self, file: Path) -> None:
        self._path = file
        try:
            # safetensors' stubs leave the methods of its handle untyped.
            self._file: Any = safe_open(file, framework="pt", device="cpu")
            self._descriptor = os.open(file, os.O_RDONLY)
            self._opened_as = os.fstat(self._descriptor)
            length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
            # safe_open has just checked that the spans lie in the file and do not overlap
            header = json.loads(os.pread(self._descriptor, length, 8))
        except (SafetensorError, OSError, ValueError) as error:
            raise unreadable(file, error) from error
        header.pop("__metadata__", None)
        self._spans = {
            name: Span(*(8 + length + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        }

    def names(self) -> Sequence[str]:
        """Its tensors."""
        return list(self._file.keys())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, mapped into memory."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype."""
        code = str(self._file.get_slice(name).get_dtype())
        return SAFETENSORS_DTYPES.get(code, code.lower())

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        """Copies spans of a tensor's bytes into memory."""
        start = self._spans[name].start
        filled = 0
        for span in spans:
            position, end = start + span.start, start + span.end
            while position < end:
                room = into[filled : filled + end - position]
                try:
                    count = os.preadv(self._descriptor, [room], position)
                except OSError as error:
                    raise unreadable(self._path, error) from error
                if not count:
                    raise _changed(self._path, "it ended while it was read")
                filled, position = filled + count, position + count

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch tensors."""
        if not hasattr(os, "posix_fadvise"):
            return
        for name in names:
            start, end = self._spans[name]
            end = min(end, start + limit)
            limit -= end - start
            for position in range(start, end, READ_AHEAD_BYTES):
                size = min(READ_AHEAD_BYTES, end - position)
                os.posix_fadvise(self._descriptor, position, size, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Compares the file with what was opened."""
        opened, now = self._opened_as, os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (opened.st_size, opened.st_mtime_ns):
            raise _changed(self._path, "it was written to while it was read")
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return  # deleted: what was opened is still all there
        except OSError as error:
            raise unreadable(self._path, error) from error
        if (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            raise _changed(self._path, "another file took its place while it was read")

    def close(self) -> None:
        """Closes the file."""
        self._file.__exit__(None, None, None)
        os.close(self._descriptor)


class PickleShard:
    """A ``torch.save`` file, read with ``weights_only=True``.

    Raises:
        CheckpointError: it cannot be read, or is cut off or corrupt.
        UnsupportedModelError: it is not a plain dictionary of tensors.
    """

    def __init__(self, file: Path) -> None:
        self._tensors = _unpickle(file)

    def names(self) -> Sequence[str]:
        """Its tensors."""
        return list(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, mapped into memory."""
        return self._tensors[name].detach()

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype."""
        return dtype_name(self._tensors[name].dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        """Copies spans of a tensor's bytes into memory."""
        content = tensor_bytes(self.tensor(name).contiguous())
        filled = 0
        for start, end in spans:
            into[filled : filled + end - start] = content[start:end]
            filled += end - start

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Nothing: they are mapped, or in memory."""

    def check_unchanged(self) -> None:
        """Nothing: they are mapped, or in memory."""

    def close(self) -> None:
        """Closes the file."""
        self._tensors = {}


def _unpickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files written before torch 1.6 are no zip archives and cannot be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_lfs_pointer(file):
            raise unreadable(file, error) from error
        raise _not_only_tensors(file) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise unreadable(file, error) from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor)
        for name, tensor in content.items()
    ):
        raise _not_only_tensors(file)
    return dict(content)


def _not_only_tensors(file: Path) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"weights file is not a plain dictionary of tensors: {str(file)!r}",
        hint="load it where you trust it and write it anew with save_pretrained, "
        "then scan that folder",
    )


def unreadable(file: Path, error: Exception) -> CheckpointError:
    """The error of ours that stands for what reading a weights file raised."""
    if _is_lfs_pointer(file):
        return CheckpointCorruptError(
            f"weights file is a Git LFS pointer, not the weights: {str(file)!r}",
            hint=f"git -C {str(file.parent)!r} lfs pull",
        )
    # that is how torch finds a file that ends early
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        return CheckpointAccessError(
            f"cannot read weights file: {str(file)!r}: {error.strerror or error}",
            hint="is the disk or network share still there? Then scan again",
        )
    return CheckpointCorruptError(
        f"weights file cut off or corrupt: {str(file)!r} ({str(error)!r})",
        hint="download or copy this file again",
    )


def _changed(file: Path, how: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"weights file changed: {str(file)!r} ({how})",
        hint="scan again when nothing writes to the checkpoint any more",
    )


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, in the order of its elements."""
    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def _is_lfs_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False
