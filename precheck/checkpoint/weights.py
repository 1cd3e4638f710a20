"""A checkpoint's tensors as a lazy, read-only mapping from name to tensor."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open

from precheck.errors import (
    CheckpointAccessError,
    CheckpointCorruptError,
    CheckpointError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

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


class _Shard(Protocol):
    def names(self) -> Sequence[str]: ...
    def tensor(self, name: str) -> torch.Tensor: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None: ...
    def read_ahead(self, names: Iterable[str], *, limit: int) -> None: ...
    def check_unchanged(self) -> None: ...
    def close(self) -> None: ...


class _SafetensorsShard:
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
            raise _unreadable(file, error) from error
        header.pop("__metadata__", None)
        self._spans = {
            name: Span(*(8 + length + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        }

    def names(self) -> Sequence[str]:
        return list(self._file.keys())

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def dtype(self, name: str) -> str:
        code = str(self._file.get_slice(name).get_dtype())
        return SAFETENSORS_DTYPES.get(code, code.lower())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        start = self._spans[name].start
        filled = 0
        for span in spans:
            position, end = start + span.start, start + span.end
            while position < end:
                room = into[filled : filled + end - position]
                try:
                    count = os.preadv(self._descriptor, [room], position)
                except OSError as error:
                    raise _unreadable(self._path, error) from error
                if not count:
                    raise _changed(self._path, "it ended while it was read")
                filled, position = filled + count, position + count

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
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
        opened, now = self._opened_as, os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (opened.st_size, opened.st_mtime_ns):
            raise _changed(self._path, "it was written to while it was read")
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return  # deleted: what was opened is still all there
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            raise _changed(self._path, "another file took its place while it was read")

    def close(self) -> None:
        self._file.__exit__(None, None, None)
        os.close(self._descriptor)


class _PickleShard:
    def __init__(self, file: Path) -> None:
        self._tensors = _unpickle(file)

    def names(self) -> Sequence[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach()

    def dtype(self, name: str) -> str:
        return str(self._tensors[name].dtype).removeprefix("torch.")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
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
        self._tensors = {}


class Weights(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint on the CPU, read when asked for.

    Every shard is opened once, when the mapping is made, and its header checked against its
    length. Where two shards hold one name the later file counts, as in ``from_pretrained``.
    Indexing maps a tensor into memory. ``read_into`` copies it into memory of the caller's, which
    is no slower, and a file that is cut off meanwhile raises an error instead of killing the
    process. For one thread at a time.

    Args:
        files: the shards, safetensors or ``torch.save`` files (``.bin``, ``.pt``, ``.pth``);
            the latter are read with ``weights_only=True``.

    Raises:
        CheckpointCorruptError: a shard that is cut off, empty or of another format; names it.
        UnsupportedModelError: a ``torch.save`` file that is not a plain dictionary of tensors.

    Example:
        ``with Weights(checkpoint.weight_files) as weights: weights["lm_head.weight"]``
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._shards: list[_Shard] = []
        self._shard_of: dict[str, _Shard] = {}
        self._size_bytes = 0
        self._bytes_read = 0
        try:
            for file in files:
                self._open(file)
        except CheckpointError:
            self.close()
            raise

    def _open(self, file: Path) -> None:
        is_safetensors = file.suffix == ".safetensors"
        shard: _Shard = _SafetensorsShard(file) if is_safetensors else _PickleShard(file)
        self._shards.append(shard)
        self._shard_of |= dict.fromkeys(shard.names(), shard)
        try:
            self._size_bytes += file.stat().st_size
        except OSError as error:
            raise _unreadable(file, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every shard; tensors already read stay valid."""
        for shard in self._shards:
            shard.close()
        self._shards = []
        self._shard_of = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._shard_of[name].tensor(name)

    def __contains__(self, name: object) -> bool:
        # Mapping's own would read the tensor.
        return name in self._shard_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __len__(self) -> int:
        return len(self._shard_of)

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype, from the header alone; ``bfloat16``."""
        return self._shard_of[name].dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        return self._shard_of[name].shape(name)

    def nbytes(self, name: str) -> int:
        """Bytes a tensor takes."""
        dtype: torch.dtype = getattr(torch, self.dtype(name))
        return math.prod(self.shape(name)) * dtype.itemsize

    def read_into(self, name: str, buffer: torch.Tensor) -> torch.Tensor:
        """Reads a tensor into a flat uint8 CPU buffer of at least ``nbytes(name)``; a view of it.

        Raises:
            CheckpointCorruptError: the file ended early or cannot be read any more.
        """
        size = self.nbytes(name)
        self._read(name, [Span(0, size)], buffer)
        dtype: torch.dtype = getattr(torch, self.dtype(name))
        return buffer[:size].view(dtype).view(self.shape(name))

    def read_rows_into(
        self, name: str, rows: slice | Sequence[int], buffer: torch.Tensor
    ) -> torch.Tensor:
        """Reads rows of a tensor's first dimension, in the order given, as ``read_into`` does."""
        num_rows, *rest = self.shape(name)
        dtype: torch.dtype = getattr(torch, self.dtype(name))
        size = math.prod(rest) * dtype.itemsize
        wanted = range(num_rows)[rows] if isinstance(rows, slice) else rows
        spans: list[Span] = []
        for row in wanted:
            start, end = row * size, (row + 1) * size
            if spans and spans[-1].end == start:
                spans[-1] = Span(spans[-1].start, end)
            else:
                spans.append(Span(start, end))
        self._read(name, spans, buffer)
        return buffer[: size * len(wanted)].view(dtype).view(len(wanted), *rest)

    def _read(self, name: str, spans: Sequence[Span], buffer: torch.Tensor) -> None:
        self._shard_of[name].read(name, spans, tensor_bytes(buffer))
        self._bytes_read += sum(end - start for start, end in spans)

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch tensors from storage; does not wait for them.

        Args:
            names: in the order they will be read in.
            limit: bytes of each file that are asked for, the first ones.
        """
        by_shard: dict[_Shard, list[str]] = {}
        for name in names:
            by_shard.setdefault(self._shard_of[name], []).append(name)
        for shard, wanted in by_shard.items():
            shard.read_ahead(wanted, limit=limit)

    def check_unchanged(self) -> None:
        """Compares every file with what was opened; a deleted one is still all there.

        Raises:
            CheckpointCorruptError: one was written to, cut off, or replaced; names it.
        """
        for shard in self._shards:
            shard.check_unchanged()

    @property
    def bytes_read(self) -> int:
        """Bytes that ``read_into`` and ``read_rows_into`` read so far."""
        return self._bytes_read

    @property
    def num_elements(self) -> int:
        """Stored elements of all tensors, from the headers alone."""
        return sum(math.prod(self.shape(name)) for name in self)

    @property
    def size_bytes(self) -> int:
        """Size of the files."""
        return self._size_bytes


def _unpickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files written before torch 1.6 are no zip archives and cannot be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_lfs_pointer(file):
            raise _unreadable(file, error) from error
        raise _not_only_tensors(file) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _unreadable(file, error) from error
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


def _unreadable(file: Path, error: Exception) -> CheckpointError:
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
