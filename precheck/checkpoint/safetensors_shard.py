"""Safetensors files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from precheck.checkpoint.shards import OpenFile, Span, unreadable
from precheck.errors import CheckpointCorruptError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
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
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
"""torch's name of a dtype by safetensors' code.

**Source**: ``_TYPES`` in
https://github.com/huggingface/safetensors/blob/main/bindings/python/py_src/safetensors/torch.py
"""

_LONGEST_DIMENSION = 2**63 - 1
"""torch counts in int64; a tensor without elements may claim to be longer."""


class SafetensorsShard:
    """A safetensors file.

    Raises:
        CheckpointError: it cannot be read, is cut off or corrupt, or holds what torch cannot.
    """

    def __init__(self, file: Path) -> None:
        try:
            # safetensors' stubs leave the methods of its handle untyped.
            self._file: Any = safe_open(file, framework="pt", device="cpu")
            self._opened = OpenFile(file)
            length = int.from_bytes(self._opened.start(8, 0), "little")
            # safe_open has just checked that the spans lie in the file and do not overlap
            header = json.loads(self._opened.start(length, 8))
        except (SafetensorError, OSError, ValueError) as error:
            raise unreadable(file, error) from error
        header.pop("__metadata__", None)
        for name, entry in header.items():
            check_entry(name, entry, where=str(file))
        self._spans = {
            name: Span(*(8 + length + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        }

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self._opened.version[0]

    def names(self) -> Sequence[str]:
        """Its tensors."""
        return list(self._file.keys())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, mapped into memory."""
        tensor: torch.Tensor = self._file.get_tensor(name)
        return tensor

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype."""
        return SAFETENSORS_DTYPES[str(self._file.get_slice(name).get_dtype())]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        """Copies spans of a tensor's bytes into memory."""
        start = self._spans[name].start
        within = (Span(start + span.start, start + span.end) for span in spans)
        self._opened.read(within, into)

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch tensors."""
        self._opened.read_ahead((self._spans[name] for name in names), limit=limit)

    def check_unchanged(self) -> None:
        """Compares the file with what was opened."""
        self._opened.check_unchanged()

    def close(self) -> None:
        """Closes the file."""
        self._file.__exit__(None, None, None)
        self._opened.close()


def check_entry(name: str, entry: Mapping[str, Any], *, where: str) -> None:
    """Checks that torch has the dtype and the shape of a header's entry.

    Raises:
        UnsupportedModelError: it does not have the dtype.
        CheckpointCorruptError: it does not have the shape.
    """
    code, shape = entry["dtype"], entry["shape"]
    dtype = SAFETENSORS_DTYPES.get(code)
    if dtype is None or not hasattr(torch, dtype):
        raise UnsupportedModelError(
            f"stored in a dtype that torch {torch.__version__} does not support: {name!r} in "
            f"{where!r} is {code!r} (expected one of {', '.join(SAFETENSORS_DTYPES)})",
            hint="scan the model that it was quantised from, or: pip install -U torch",
        )
    if any(size > _LONGEST_DIMENSION for size in shape):
        raise CheckpointCorruptError(
            f"weights file corrupt: {name!r} in {where!r} has the shape {shape} "
            f"(expected at most {_LONGEST_DIMENSION} in a dimension)",
            hint="download or copy this file again",
        )
