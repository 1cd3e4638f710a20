"""``torch.save`` files."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.shards import Span, is_lfs_pointer, tensor_bytes, unreadable
from precheck.checkpoint.torch_dtypes import dtype_name
from precheck.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


class PickleShard:
    """A ``torch.save`` file, read with ``weights_only=True``.

    Raises:
        CheckpointError: it cannot be read, or is cut off or corrupt.
        UnsupportedModelError: it is not a plain dictionary of tensors.
    """

    def __init__(self, file: Path) -> None:
        self._tensors = _unpickle(file)
        try:
            self._size_bytes = file.stat().st_size
        except OSError as error:
            raise unreadable(file, error) from error

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self._size_bytes

    def names(self) -> Sequence[str]:
        """Its tensors."""
        return list(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, mapped into memory unless the file is of an old format."""
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
        """Forgets the tensors."""
        self._tensors = {}


def _unpickle(file: Path) -> dict[str, torch.Tensor]:
    try:
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files written before torch 1.6 are no zip archives and cannot be mapped.
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if is_lfs_pointer(file):
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
        hint="load it where you trust it and save it again with save_pretrained, "
        "then scan that folder",
    )
