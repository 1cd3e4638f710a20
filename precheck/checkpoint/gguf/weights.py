"""The tensors of a GGUF file by the names the model takes, decoded when they are read."""

from __future__ import annotations

import math
from functools import cached_property, partial
from typing import TYPE_CHECKING

import gguf
import torch

from precheck.checkpoint.gguf.shard import PLAIN, GgufShard
from precheck.checkpoint.shards import Span
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.checkpoint.weights import Headers, Weights
from precheck.records.stored import ScaleFault, ScaleFaultKind, ScaleRole, StoredType

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from precheck.checkpoint.gguf.header import GgufHeader, StoredTensor
    from precheck.checkpoint.gguf.recipes import Recipe
    from precheck.records.stored import TensorFault

_BLOCK_ELEMENTS = 1 << 22
"""Decoded at a time, so that what ``gguf`` needs besides the result takes little memory."""


class GgufWeights(Weights):
    """The mapping from the model's names to tensors; what the model does not take is under its own.

    A tensor that is stored as torch has it, and that nothing changes, keeps its dtype; the others
    are decoded to float32, as transformers does.

    Args:
        file: the GGUF file.
        header: of the file.
        recipes: how each parameter is made, by the model's name.

    Raises:
        CheckpointError: it cannot be opened, or was changed since its header was read.
    """

    def __init__(self, file: Path, header: GgufHeader, recipes: Mapping[str, Recipe]) -> None:
        self._header = header
        super().__init__([file], open_shard=partial(GgufShard, header=header))
        used = {source.name for recipe in recipes.values() for source in recipe.sources}
        self._recipes = recipes
        self._names = dict.fromkeys(
            [*recipes, *(name for name in super().__iter__() if name not in used)]
        )

    def __getitem__(self, name: str) -> Tensor:
        return self.read_into(name, torch.empty(self.nbytes(name), dtype=torch.uint8))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype."""
        recipe = self._recipes.get(name)
        if recipe is None:
            return super().dtype(name)
        if recipe.make is not None:
            return "float32"
        return PLAIN.get(recipe.sources[0].kind, "float32")

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the header alone."""
        recipe = self._recipes.get(name)
        return super().shape(name) if recipe is None else recipe.shape

    def stored_dtypes(self) -> dict[str, str]:
        """The dtype of every tensor as it is read: a block's scales lie in the block."""
        return {name: self.dtype(name) for name in self}

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as it is read, as ``stored_dtypes``."""
        return self.shape(name)

    def stored_elements(self, name: str, count: int) -> Tensor:
        """The first elements of a tensor as it is read, ``(count,)``."""
        return self[name].reshape(-1)[:count]

    @cached_property
    def decoded_from(self) -> frozenset[str]:
        """Names of the file's tensors that are read under another name."""
        return frozenset(
            source.name for recipe in self._recipes.values() for source in recipe.sources
        )

    def headers(self) -> Headers:
        """A summary of the header; types of blocks as ggml calls them, ``q4_k``."""
        return Headers(
            size_bytes=self._size_bytes,
            elements_by_dtype={each.name: each.num_elements for each in self.stored_types()},
            num_packed_without_bias=0,
        )

    def stored_types(self) -> tuple[StoredType, ...]:
        """The types of the file's tensors, the largest first."""
        by_kind: dict[str, list[StoredTensor]] = {}
        for tensor in self._header.tensors:
            name = PLAIN.get(tensor.kind, tensor.kind.name.lower())
            by_kind.setdefault(name, []).append(tensor)
        types = (
            StoredType(
                name=name,
                num_tensors=len(tensors),
                num_elements=sum(math.prod(tensor.shape) for tensor in tensors),
                num_bytes=sum(tensor.span.end - tensor.span.start for tensor in tensors),
            )
            for name, tensors in by_kind.items()
        )
        return tuple(sorted(types, key=lambda each: -each.num_bytes))

    def faults_of_blocks(self, faults: Iterable[TensorFault]) -> Iterator[ScaleFault]:
        """The blocks whose scale is NaN or infinite: then each of their numbers is one of both."""
        for fault in faults:
            recipe = self._recipes.get(fault.name)
            sources = () if recipe is None else recipe.sources
            kinds = {source.kind for source in sources}
            if len(kinds) != 1 or kinds & PLAIN.keys():
                continue
            elements, _ = gguf.GGML_QUANT_SIZES[sources[0].kind]
            yield ScaleFault(
                # gate and up of experts are one parameter: which of both it is in is not known
                name=sources[0].name if len(sources) == 1 else fault.name,
                role=ScaleRole.WEIGHT,
                kind=ScaleFaultKind.NOT_FINITE,
                num_faulty=fault.num_elements // elements,
                num_scales=sum(math.prod(source.shape) for source in sources) // elements,
                weight=fault.name,
            )

    def read_into(self, name: str, buffer: Tensor) -> Tensor:
        """Reads, and decodes, a tensor; see ``Weights.read_into``."""
        recipe = self._recipes.get(name)
        if recipe is None:
            size = self.nbytes(name)
            self._read(name, [Span(0, size)], buffer)
            return buffer[:size].view(torch_dtype(self.dtype(name))).view(self.shape(name))
        if recipe.make is None:
            return self._decode(recipe.sources[0], range(recipe.shape[0]), buffer)
        decoded = [self._decode_alone(source) for source in recipe.sources]
        return _placed(recipe.make(decoded), buffer)

    def read_rows_into(self, name: str, rows: slice | Sequence[int], buffer: Tensor) -> Tensor:
        """Reads, and decodes, rows of the first dimension; see ``Weights.read_rows_into``."""
        recipe = self._recipes.get(name)
        if recipe is None:
            return super().read_rows_into(name, rows, buffer)
        if recipe.make is not None:
            return _placed(self[name][rows], buffer)
        (source,) = recipe.sources
        wanted = range(recipe.shape[0])[rows] if isinstance(rows, slice) else rows
        return self._decode(source, wanted, buffer)

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch what is stored of these tensors."""
        stored = [
            source
            for name in names
            for source in (
                [each.name for each in self._recipes[name].sources]
                if name in self._recipes
                else [name]
            )
        ]
        super().read_ahead(stored, limit=limit)

    # Blocks.

    def _decode_alone(self, source: StoredTensor) -> Tensor:
        """A whole tensor, float32, in memory of its own."""
        buffer = torch.empty(4 * math.prod(source.shape), dtype=torch.uint8)
        return self._decode(source, range(source.shape[0]), buffer).float()

    def _decode(self, source: StoredTensor, rows: Sequence[int], buffer: Tensor) -> Tensor:
        """Rows of the first dimension of a tensor of the file, decoded."""
        if len(source.shape) == 1:  # a block lies along the only dimension
            whole = torch.empty(4 * source.shape[0], dtype=torch.uint8)
            line = self._decode_lines(source, [range(1)], whole).view(-1)
            return _placed(line[list(rows)], buffer)
        lines = math.prod(source.shape[1:-1])
        runs: list[range] = []
        for row in rows:
            start, stop = row * lines, (row + 1) * lines
            if runs and runs[-1].stop == start:
                start = runs.pop().start
            runs.append(range(start, stop))
        return self._decode_lines(source, runs, buffer).view(len(rows), *source.shape[1:])

    def _decode_lines(self, source: StoredTensor, runs: Sequence[range], buffer: Tensor) -> Tensor:
        """Lines along the last dimension, one run of them after the other: ``(lines, last)``."""
        dtype = torch_dtype(PLAIN.get(source.kind, "float32"))
        shape = (sum(map(len, runs)), source.shape[-1])
        decoded = buffer[: math.prod(shape) * dtype.itemsize].view(dtype).view(shape)
        spans = [Span(run.start * source.row_bytes, run.stop * source.row_bytes) for run in runs]
        if source.kind in PLAIN:
            self._read(source.name, spans, decoded)
            return decoded
        blocks = torch.empty(shape[0], source.row_bytes, dtype=torch.uint8)
        self._read(source.name, spans, blocks)
        step = max(1, _BLOCK_ELEMENTS // shape[1])
        for part, into in zip(blocks.split(step), decoded.split(step), strict=True):
            into.copy_(torch.from_numpy(gguf.dequantize(part.numpy(), source.kind)))
        return decoded


def _placed(values: Tensor, buffer: Tensor) -> Tensor:
    """Values at the start of a uint8 buffer."""
    placed = buffer[: values.nbytes].view(values.dtype).view(values.shape)
    return placed.copy_(values)
