"""A checkpoint's tensors as a lazy, read-only mapping from name to tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import torch

from precheck.checkpoint.faults.scales import scales_of_packed
from precheck.checkpoint.formats import check_pickles
from precheck.checkpoint.pickle_shard import PickleShard
from precheck.checkpoint.safetensors_shard import SafetensorsShard
from precheck.checkpoint.shards import Shard, Span, tensor_bytes
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from precheck.records.stored import ScaleFault, StoredType, TensorFault


@dataclass(frozen=True, slots=True, kw_only=True)
class Headers:
    """What the headers of all shards say, packed tensors as they are stored."""

    size_bytes: int
    """Size of the files."""
    elements_by_dtype: dict[str, int]
    """Stored elements by dtype name, ``{"bfloat16": 7615616512}``."""
    num_packed_without_bias: int
    """GPTQ and AWQ linears (``.qweight``) that no bias is stored for."""


SHARD_CLASSES: Mapping[str, Callable[[Path], Shard]] = MappingProxyType(
    {
        ".safetensors": SafetensorsShard,
        ".bin": PickleShard,
        ".pt": PickleShard,
        ".pth": PickleShard,
    }
)
"""What opens a weights file, by its suffix; any other suffix is opened as a ``torch.save`` file."""


def open_shard(file: Path) -> Shard:
    """A weights file of any format, opened.

    Raises:
        CheckpointError: it cannot be read, or is broken.
    """
    return SHARD_CLASSES.get(file.suffix, PickleShard)(file)


class Weights(Mapping[str, torch.Tensor]):
    """The tensors of a checkpoint on the CPU, read on access.

    Every shard is opened once, when the mapping is made, and its header checked against its
    length. If two shards hold the same name the later one wins, as in ``from_pretrained``.
    Indexing maps a tensor into memory. ``read_into`` copies it into the caller's memory: that is no
    slower, and if the file is cut off meanwhile, it raises an error instead of killing the process.
    Not thread-safe.

    Args:
        files: the shards, safetensors or ``torch.save`` files (``.bin``, ``.pt``, ``.pth``);
            the latter are read with ``weights_only=True``.
        allow_pickle: whether the latter may be read at all.
        open_shard: opens each of the files.

    Raises:
        CheckpointCorruptError: a shard that is cut off, empty or of another format; names it.
        UnsupportedModelError: a ``torch.save`` file that may not be read, or is not a plain
            dictionary of tensors.

    Example:
        ``with Weights(checkpoint.weight_files) as weights: weights["lm_head.weight"]``
    """

    def __init__(
        self,
        files: Sequence[Path],
        *,
        allow_pickle: bool = False,
        open_shard: Callable[[Path], Shard] = open_shard,
    ) -> None:
        for file in files:
            check_pickles([file.name], allowed=allow_pickle, where=str(file.parent))
        self._shards: list[Shard] = []
        self._shard_of: dict[str, Shard] = {}
        self._size_bytes = 0
        self._bytes_read = 0
        try:
            for file in files:
                self._open(open_shard(file))
        except CheckpointError:
            self.close()
            raise

    def _open(self, shard: Shard) -> None:
        self._shards.append(shard)
        self._shard_of |= dict.fromkeys(shard.names(), shard)
        self._size_bytes += shard.size_bytes

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

    def leave_out(self, names: Iterable[str]) -> None:
        """From now on these tensors are not there."""
        for name in names:
            self._shard_of.pop(name, None)

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
        dtype = torch_dtype(self.dtype(name))
        return math.prod(self.shape(name)) * dtype.itemsize

    def stored_dtypes(self) -> dict[str, str]:
        """The dtype of every tensor as it is stored: where reading decodes, too."""
        return {name: shard.dtype(name) for name, shard in self._shard_of.items()}

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as it is stored: where reading decodes, too."""
        return self._shard_of[name].shape(name)

    def stored_tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored, mapped into memory: where reading decodes, too."""
        return self._shard_of[name].tensor(name)

    def stored_elements(self, name: str, count: int) -> torch.Tensor:
        """The first elements of a tensor as it is stored, ``(count,)``."""
        dtype = torch_dtype(self._shard_of[name].dtype(name))
        buffer = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
        if count:
            self._read(name, [Span(0, buffer.numel())], buffer)
        return buffer.view(dtype)

    def numbers_under(self, name: str, scales: torch.Tensor) -> torch.Tensor | None:
        """What is stored of a weight where scales are selected; None: not known here."""
        del name, scales
        return None

    def stored_types(self) -> tuple[StoredType, ...]:
        """The types of a format that has its own; none here."""
        return ()

    def faults_of_blocks(self, faults: Iterable[TensorFault]) -> Iterator[ScaleFault]:
        """Which scales make weights NaN or infinite, where each block has its own; none here."""
        del faults
        yield from ()

    @property
    def decoded_from(self) -> frozenset[str]:
        """Names of the stored tensors that reading decodes, scales among them; none here."""
        return frozenset()

    def has_zero_scales(self, name: str) -> bool:
        """Whether a tensor that is zero throughout is a scale, or is decoded with such scales."""
        return name in self._scales_of_packed

    @cached_property
    def _scales_of_packed(self) -> frozenset[str]:
        return scales_of_packed(self.stored_dtypes())

    def headers(self) -> Headers:
        """A summary of all headers, of what is stored: where reading decodes, too."""
        elements: Counter[str] = Counter()
        for name, shard in self._shard_of.items():
            elements[shard.dtype(name)] += math.prod(shard.shape(name))
        packed = [name for name in self._shard_of if name.endswith(".qweight")]
        biases = [f"{name.removesuffix('.qweight')}.bias" for name in packed]
        return Headers(
            size_bytes=self._size_bytes,
            elements_by_dtype=dict(elements),
            num_packed_without_bias=sum(bias not in self._shard_of for bias in biases),
        )

    def read_into(self, name: str, buffer: torch.Tensor) -> torch.Tensor:
        """Reads a tensor into a flat uint8 CPU buffer of at least ``nbytes(name)``.

        Returns a view of that buffer.

        Raises:
            CheckpointCorruptError: the file ended early or cannot be read any more.
        """
        size = self.nbytes(name)
        self._read(name, [Span(0, size)], buffer)
        dtype = torch_dtype(self.dtype(name))
        return buffer[:size].view(dtype).view(self.shape(name))

    def read_rows_into(
        self, name: str, rows: slice | Sequence[int], buffer: torch.Tensor
    ) -> torch.Tensor:
        """Reads rows of a tensor's first dimension, in the order given, as ``read_into`` does."""
        num_rows, *rest = self.shape(name)
        dtype = torch_dtype(self.dtype(name))
        row_bytes = math.prod(rest) * dtype.itemsize
        indices = range(num_rows)[rows] if isinstance(rows, slice) else rows
        spans: list[Span] = []
        for row in indices:
            start, end = row * row_bytes, (row + 1) * row_bytes
            if spans and spans[-1].end == start:
                spans[-1] = Span(spans[-1].start, end)
            else:
                spans.append(Span(start, end))
        self._read(name, spans, buffer)
        return buffer[: row_bytes * len(indices)].view(dtype).view(len(indices), *rest)

    def _read(self, name: str, spans: Sequence[Span], buffer: torch.Tensor) -> None:
        self._shard_of[name].read(name, spans, tensor_bytes(buffer))
        self._bytes_read += sum(end - start for start, end in spans)

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch tensors from storage; does not wait for them.

        Args:
            names: in the order they will be read in.
            limit: at most this many bytes of each file, in the order of ``names``.
        """
        by_shard: dict[Shard, list[str]] = {}
        for name in names:
            by_shard.setdefault(self._shard_of[name], []).append(name)
        for shard, names_in_shard in by_shard.items():
            shard.read_ahead(names_in_shard, limit=limit)

    def check_unchanged(self) -> None:
        """Checks that no file was changed since it was opened; a deleted one is still readable.

        Raises:
            CheckpointCorruptError: one was written to, cut off, or replaced; names it.
        """
        for shard in self._shards:
            shard.check_unchanged()

    @property
    def bytes_read(self) -> int:
        """Bytes that ``read_into`` and ``read_rows_into`` have read so far."""
        return self._bytes_read

    @property
    def num_elements(self) -> int:
        """Stored elements of all tensors, from the headers alone."""
        return sum(math.prod(self.shape(name)) for name in self)

    @property
    def size_bytes(self) -> int:
        """Size of the files."""
        return self._size_bytes
