"""A checkpoint's tensors as a lazy, read-only mapping from name to tensor."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from safetensors import SafetensorError, safe_open

from precheck.errors import CheckpointCorruptError, CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_SAFETENSORS_DTYPES = {
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


class _Shard(Protocol):
    def names(self) -> Sequence[str]: ...
    def tensor(self, name: str) -> torch.Tensor: ...
    def dtype(self, name: str) -> str: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def close(self) -> None: ...


class _SafetensorsShard:
    def __init__(self, file: Path) -> None:
        try:
            # safetensors' stubs leave the methods of its handle untyped.
            self._file: Any = safe_open(file, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from error

    def names(self) -> Sequence[str]:
        return list(self._file.keys())

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def dtype(self, name: str) -> str:
        code = str(self._file.get_slice(name).get_dtype())
        return _SAFETENSORS_DTYPES.get(code, code.lower())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def close(self) -> None:
        self._file.__exit__(None, None, None)


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

    def close(self) -> None:
        self._tensors = {}


class Weights(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint on the CPU, memory-mapped, read when asked for.

    Every shard is opened once, when the mapping is made, and its header checked against its
    length. Where two shards hold one name the later file counts, as in ``from_pretrained``.

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
        self._size_bytes += file.stat().st_size

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


def _unreadable(file: Path, error: Exception) -> CheckpointCorruptError:
    if _is_lfs_pointer(file):
        return CheckpointCorruptError(
            f"weights file is a Git LFS pointer, not the weights: {str(file)!r}",
            hint=f"git -C {str(file.parent)!r} lfs pull",
        )
    return CheckpointCorruptError(
        f"weights file cut off or corrupt: {str(file)!r} ({str(error)!r})",
        hint="download or copy this file again",
    )


def _is_lfs_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False
