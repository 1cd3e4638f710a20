"""The header of a GGUF file, read within bounds.

The readers of ``gguf`` and of transformers trust what a header counts: a file of 40 bytes that
announces 2**63 tokens keeps them busy until the memory is full. So every count, length, type and
offset is checked here first, against the size of the file, and they read only what passed.

**Source**: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, BinaryIO

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from precheck.checkpoint.config import MOST_LAYERS
from precheck.checkpoint.shards import Span, is_lfs_pointer, unreadable
from precheck.errors import CheckpointCorruptError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, str] = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
"""The layout of a value by its type, as ``struct`` spells it."""

_MOST_DIMENSIONS = 4
"""``GGML_MAX_DIMS``"""
_MOST_ENTRIES = 1 << 24
"""Elements of all arrays together, keys and tensors; the largest vocabularies have 262,144 tokens,
each with a text, a score, a type and two merges. A reader makes a Python object of each."""
_SMALLEST_KEY, _SMALLEST_TENSOR = 13, 24
"""Bytes of a key without a name, and of a tensor's description."""

Value = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of the file, by its description."""

    name: str
    shape: tuple[int, ...]
    """As torch has it: a block lies along the last dimension."""
    kind: GGMLQuantizationType
    span: Span
    """Where its bytes lie in the file."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row along the last dimension."""
        elements, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // elements * size


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a file says of itself before its tensors."""

    metadata: Mapping[str, Value]
    """Keys with one value; those with a list are in ``lengths``."""
    lengths: Mapping[str, int]
    """The length of every list."""
    tensors: tuple[StoredTensor, ...]
    size_bytes: int
    """Of the file."""
    written_ns: int
    """When it was written to, in nanoseconds, by the file system."""

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.metadata["general.architecture"])


def read_header(file: Path) -> GgufHeader:
    """The header, every number of it checked.

    Raises:
        CheckpointCorruptError: no GGUF file, one that is cut off, or one that contradicts itself.
        UnsupportedModelError: another version, a part of a split file, or a type of tensor that
            cannot be decoded.
        CheckpointAccessError: it cannot be read.
    """
    try:
        with file.open("rb") as stream:
            return _Reader(stream, file).header()
    except OSError as error:
        raise unreadable(file, error) from error


class _Reader:
    """Reads a stream from its start to the first tensor."""

    def __init__(self, stream: BinaryIO, file: Path) -> None:
        self._stream = stream
        self._file = file
        self._opened_as = os.fstat(stream.fileno())
        self._size = self._opened_as.st_size
        self._position = 0
        self._num_entries = 0
        self._metadata: dict[str, Value] = {}
        self._lengths: dict[str, int] = {}

    def header(self) -> GgufHeader:
        self._check_start()
        num_tensors, num_keys = self._numbers("QQ")
        self._count(num_keys, _SMALLEST_KEY, "keys")
        self._count(num_tensors, _SMALLEST_TENSOR, "tensors")
        for _ in range(num_keys):
            self._read_key()
        self._check_metadata()
        described = [self._description() for _ in range(num_tensors)]
        alignment = self._alignment()
        start = -(-self._position // alignment) * alignment
        tensors = tuple(self._tensor(*each, start=start, alignment=alignment) for each in described)
        self._check_apart(tensors)
        return GgufHeader(
            metadata=self._metadata,
            lengths=self._lengths,
            tensors=tensors,
            size_bytes=self._size,
            written_ns=self._opened_as.st_mtime_ns,
        )

    # The parts of it, in their order.

    def _check_start(self) -> None:
        if self._size < len(_MAGIC) or self._stream.read(len(_MAGIC)) != _MAGIC:
            if is_lfs_pointer(self._file):
                raise unreadable(self._file, ValueError("a pointer"))
            raise self._corrupt("it does not start with GGUF")
        self._position = len(_MAGIC)
        (version,) = self._numbers("I")
        if version not in _VERSIONS:
            raise UnsupportedModelError(
                f"GGUF version {version}: {str(self._file)!r} (expected "
                f"{' or '.join(map(str, _VERSIONS))}, little-endian)",
                hint="convert the original checkpoint again with llama.cpp's convert_hf_to_gguf.py",
            )

    def _read_key(self) -> None:
        key = self._text("a key")
        (kind,) = self._numbers("I")
        if key in self._metadata or key in self._lengths:
            raise self._corrupt(f"the key {_shown(key)} is there twice")
        if kind == _STRING:
            self._metadata[key] = self._text(f"the value of {_shown(key)}")
        elif kind == _ARRAY:
            self._lengths[key] = self._skip_array(key)
        else:
            (self._metadata[key],) = self._numbers(self._layout(kind, key))

    def _skip_array(self, key: str) -> int:
        kind, length = self._numbers("IQ")
        if kind == _STRING:
            self._count(length, 8, f"texts in {_shown(key)}")
            for _ in range(length):
                self._text(f"a text in {_shown(key)}")
            return int(length)
        width = struct.calcsize(self._layout(kind, key))
        self._count(length, width, f"numbers in {_shown(key)}")
        self._read(length * width)
        return int(length)

    def _description(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text("the name of a tensor")
        (num_dimensions,) = self._numbers("I")
        if not 0 < num_dimensions <= _MOST_DIMENSIONS:
            raise self._corrupt(
                f"the tensor {_shown(name)} has {num_dimensions} dimensions "
                f"(expected 1 to {_MOST_DIMENSIONS})"
            )
        dimensions = self._numbers("Q" * num_dimensions)
        kind, offset = self._numbers("IQ")
        # ggml writes the dimension that varies fastest first
        return name, tuple(reversed(dimensions)), kind, offset

    def _tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: int,
        offset: int,
        *,
        start: int,
        alignment: int,
    ) -> StoredTensor:
        quantization = self._kind(name, kind)
        elements, size = GGML_QUANT_SIZES[quantization]
        if not math.prod(shape) or shape[-1] % elements:
            raise self._corrupt(
                f"the tensor {_shown(name)} has the shape {shape} (expected rows of whole blocks "
                f"of {elements}, as {quantization.name} has)"
            )
        first = start + offset
        last = first + math.prod(shape) // elements * size
        if offset % alignment or last > self._size:
            raise self._corrupt(
                f"the tensor {_shown(name)} lies in bytes {first:,} to {last:,} of "
                f"{self._size:,}, from a multiple of {alignment} on"
            )
        return StoredTensor(name=name, shape=shape, kind=quantization, span=Span(first, last))

    # What is checked.

    def _check_metadata(self) -> None:
        architecture = self._metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise self._corrupt("no general.architecture, so the model is unknown")
        num_parts = self._metadata.get("split.count", 0)
        if isinstance(num_parts, int) and num_parts > 1:
            raise UnsupportedModelError(
                f"one of {num_parts} parts of a GGUF file: {str(self._file)!r}",
                hint="merge them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf",
            )
        num_blocks = self._metadata.get(f"{architecture}.block_count", 0)
        if isinstance(num_blocks, int) and num_blocks > MOST_LAYERS:
            raise self._corrupt(
                f"{_shown(architecture)} has {num_blocks:,} layers (expected at most "
                f"{MOST_LAYERS:,})"
            )

    def _alignment(self) -> int:
        alignment = self._metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self._corrupt(f"general.alignment is {alignment!r} (expected a power of two)")
        return alignment

    def _kind(self, name: str, kind: int) -> GGMLQuantizationType:
        try:
            found = GGMLQuantizationType(kind)
        except ValueError as error:
            raise UnsupportedModelError(
                f"type {kind} of tensors is unknown: {_shown(name)} in {str(self._file)!r}",
                hint="pip install -U gguf",
            ) from error
        if not _is_decoded(found):
            raise UnsupportedModelError(
                f"tensors in {found.name} cannot be decoded: {_shown(name)} in {str(self._file)!r}",
                hint="scan the checkpoint it was made from: the folder or Hub id",
            )
        return found

    def _check_apart(self, tensors: tuple[StoredTensor, ...]) -> None:
        names = {tensor.name for tensor in tensors}
        if len(names) != len(tensors):
            raise self._corrupt("two tensors have the same name")
        in_order = sorted(tensors, key=lambda tensor: tensor.span)
        for before, after in itertools.pairwise(in_order):
            if before.span.end > after.span.start:
                raise self._corrupt(
                    f"the tensors {_shown(before.name)} and {_shown(after.name)} overlap"
                )

    def _layout(self, kind: int, key: str) -> str:
        layout = _SCALARS.get(kind)
        if layout is None:
            raise self._corrupt(f"the key {_shown(key)} has a value of unknown type {kind}")
        return layout

    def _count(self, number: int, smallest: int, what: str) -> None:
        """Checks that the rest of the file, and the memory of a reader, hold so many."""
        self._num_entries += number
        if number * smallest > self._size - self._position or self._num_entries > _MOST_ENTRIES:
            raise self._corrupt(
                f"it announces {number:,} {what}, in a file of {self._size:,} bytes"
            )

    # Bytes.

    def _text(self, what: str) -> str:
        (length,) = self._numbers("Q")
        if length > self._size - self._position:
            raise self._corrupt(f"{what} has {length:,} bytes, in a file of {self._size:,} bytes")
        try:
            return self._read(length).decode()
        except UnicodeDecodeError as error:
            raise self._corrupt(f"{what} is not UTF-8") from error

    def _numbers(self, layout: str) -> tuple[int, ...]:
        layout = f"<{layout}"
        return struct.unpack(layout, self._read(struct.calcsize(layout)))

    def _read(self, length: int) -> bytes:
        content = self._stream.read(length)
        self._position += length
        if len(content) != length:
            raise self._corrupt("it ends within its header")
        return content

    def _corrupt(self, reason: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(
            f"broken GGUF file: {str(self._file)!r}: {reason}",
            hint="download or copy this file again",
        )


@lru_cache
def _is_decoded(kind: GGMLQuantizationType) -> bool:
    """Whether ``gguf`` decodes blocks of this type: there is no list of those it does."""
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _shown(text: str) -> str:
    """A text of the file in a message: escaped, and short."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")  # noqa: PLR2004
