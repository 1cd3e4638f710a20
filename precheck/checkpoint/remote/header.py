"""The header of a safetensors file whose rest is somewhere else.

It is checked as safetensors checks it when it opens a file.

**Source**: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precheck.checkpoint.safetensors_shard import SAFETENSORS_DTYPES, check_entry
from precheck.checkpoint.shards import Span
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LENGTH_BYTES = 8
"""The header's own length, little-endian, before it."""

_LONGEST_HEADER = 100_000_000
"""Bytes; longer ones are refused.

**Source**: ``MAX_HEADER_SIZE`` in
https://github.com/huggingface/safetensors/blob/main/safetensors/src/tensor.rs
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """What the header says of a tensor."""

    dtype: str
    """torch's name."""
    shape: tuple[int, ...]
    span: Span
    """Where its bytes lie in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a file's header says."""

    num_bytes: int
    """Of the header and its length."""
    tensors: Mapping[str, StoredTensor]
    """In the order of their names, as safetensors lists them."""


def read_header(
    read: Callable[[int, int], bytearray], *, size: int, expected: int, where: str
) -> Header:
    """The header of a file, in one request if it is not longer than expected, else in two.

    Args:
        read: the bytes from one position to another.
        size: of the file, in bytes.
        expected: bytes to ask for first.
        where: the file's name in messages.

    Raises:
        CheckpointCorruptError: the header is broken, or contradicts the size of the file.
        UnsupportedModelError: a tensor in a dtype that torch does not have.
    """
    if size < LENGTH_BYTES:
        raise _corrupt(where, f"it has {size} bytes")
    start = read(0, min(size, max(expected, LENGTH_BYTES)))
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    end = LENGTH_BYTES + length
    if length > _LONGEST_HEADER or end > size:
        raise _corrupt(where, f"a header of {length} bytes in a file of {size}")
    content = start[LENGTH_BYTES:end]
    if len(content) < length:
        content += read(LENGTH_BYTES + len(content), end)
    try:
        entries = json.loads(content)
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(name, entries[name], end, where) for name in sorted(entries)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _corrupt(where, f"its header is not understood: {error}") from error
    _check_gaps(tensors, start=end, size=size, where=where)
    return Header(num_bytes=end, tensors=tensors)


def _tensor(name: str, entry: Mapping[str, Any], start: int, where: str) -> StoredTensor:
    shape, (first, last) = entry["shape"], entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise _corrupt(where, f"{name!r} has sizes that are not natural numbers")
    check_entry(name, entry, where=where)
    dtype = SAFETENSORS_DTYPES[entry["dtype"]]
    if math.prod(shape) * torch_dtype(dtype).itemsize != last - first:
        raise _corrupt(where, f"{name!r} has {last - first} bytes, {dtype} and the shape {shape}")
    return StoredTensor(dtype=dtype, shape=tuple(shape), span=Span(start + first, start + last))


def _check_gaps(tensors: Mapping[str, StoredTensor], *, start: int, size: int, where: str) -> None:
    """Checks that the tensors follow each other from the header to the end of the file."""
    position = start
    for tensor in sorted(tensors.values(), key=lambda each: each.span):
        if tensor.span.start != position:
            raise _corrupt(where, "its tensors overlap, or there is a gap between them")
        position = tensor.span.end
    if position != size:
        raise _corrupt(where, f"its tensors end at {position}, the file at {size}")


def _corrupt(where: str, why: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(
        f"weights file truncated or corrupt: {where!r} ({why})",
        hint="the file on the Hub is broken: ask its owner to upload it again",
    )
