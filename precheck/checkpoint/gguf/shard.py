"""A GGUF file as a file of tensors: its blocks as bytes, by the names that llama.cpp gives them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from gguf import GGMLQuantizationType

from precheck.checkpoint.gguf.header import read_header
from precheck.checkpoint.shards import OpenFile, Span, changed, tensor_bytes, unreadable
from precheck.checkpoint.torch_dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from precheck.checkpoint.gguf.header import GgufHeader

PLAIN: Mapping[GGMLQuantizationType, str] = MappingProxyType(
    {
        GGMLQuantizationType.F32: "float32",
        GGMLQuantizationType.F16: "float16",
        GGMLQuantizationType.BF16: "bfloat16",
    }
)
"""The types that torch has; blocks of the others are ``uint8``."""


class GgufShard:
    """A GGUF file; a tensor in blocks is ``(..., bytes of a row)`` uint8.

    Args:
        file: the file.
        header: of the file; None reads it.

    Raises:
        CheckpointError: it cannot be opened, or was changed since its header was read.
    """

    def __init__(self, file: Path, header: GgufHeader | None = None) -> None:
        header = header or read_header(file)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self.size_bytes = header.size_bytes
        try:
            self._opened = OpenFile(file)
        except OSError as error:
            raise unreadable(file, error) from error
        if self._opened.version != (header.size_bytes, header.written_ns):
            self.close()
            raise changed(file, "it was written to after its header was read")

    def names(self) -> Sequence[str]:
        """Its tensors, as llama.cpp calls them."""
        return list(self._tensors)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        tensor = torch.empty(self.shape(name), dtype=torch_dtype(self.dtype(name)))
        self.read(name, [Span(0, tensor.nbytes)], tensor_bytes(tensor))
        return tensor

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype; ``uint8`` of blocks."""
        return PLAIN.get(self._tensors[name].kind, "uint8")

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, as it is stored."""
        tensor = self._tensors[name]
        if tensor.kind in PLAIN:
            return tensor.shape
        return (*tensor.shape[:-1], tensor.row_bytes)

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        """Copies spans of a tensor's bytes into memory."""
        start = self._tensors[name].span.start
        self._opened.read((Span(start + span.start, start + span.end) for span in spans), into)

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch tensors."""
        self._opened.read_ahead((self._tensors[name].span for name in names), limit=limit)

    def check_unchanged(self) -> None:
        """Compares the file with what was opened."""
        self._opened.check_unchanged()

    def close(self) -> None:
        """Closes the file."""
        self._opened.close()
