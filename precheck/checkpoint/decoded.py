"""The tensors of a quantised checkpoint as plain ones: packed linears are decoded when read."""

from __future__ import annotations

import math
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.faults.scales import CACHE_SCALES, INPUT_SCALES, is_float8
from precheck.checkpoint.floats.fp8 import find_fp8
from precheck.checkpoint.floats.layouts import find_floats
from precheck.checkpoint.packed import AwqLinear, GptqLinear, PackedLinear, contradiction
from precheck.checkpoint.shards import Span
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.checkpoint.weights import Weights, open_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from precheck.checkpoint.quantization import Quantization
    from precheck.checkpoint.shards import Shard

_PACKED = ("qweight", "qzeros", "scales", "g_idx")
_ALSO_STORED = (*INPUT_SCALES, *CACHE_SCALES)
"""Scales of activations and of the cache: what a kernel rounds with them is not rounded here."""
_FLOATS: Mapping[str, Callable[..., Iterator[tuple[str, PackedLinear]]]] = MappingProxyType(
    {
        "fp8": find_fp8,
        "mxfp4": find_floats,
        "modelopt": find_floats,
        "compressed-tensors": find_floats,
    }
)
"""What finds the weights of a method that packs floating-point numbers."""


class DecodedWeights(Weights):
    """The mapping from name to tensor that the model takes: ``x.weight`` for ``x.qweight``.

    Decoded tensors are float32; the others are as they are stored.

    Args:
        files: the shards.
        quantization: how they are packed; a method that is decoded here.
        allow_pickle: as ``Weights`` takes it, and so is ``open_shard``.

    Raises:
        CheckpointCorruptError: shapes that contradict each other or the settings.
    """

    def __init__(
        self,
        files: Sequence[Path],
        quantization: Quantization,
        *,
        allow_pickle: bool = False,
        open_shard: Callable[[Path], Shard] = open_shard,
    ) -> None:
        super().__init__(files, allow_pickle=allow_pickle, open_shard=open_shard)
        try:
            self._packed = self._find_packed(quantization)
        except BaseException:
            self.close()
            raise
        plain = (
            name
            for name in super().__iter__()
            if name not in self.decoded_from and not name.endswith(_ALSO_STORED)
        )
        self._names = dict.fromkeys([*self._packed, *plain])
        if not self._packed and not any(map(is_float8, self.stored_dtypes().values())):
            raise contradiction(f"no tensor is packed as {quantization.method} does")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._packed:
            return super().__getitem__(name)
        return self.read_into(name, torch.empty(self.nbytes(name), dtype=torch.uint8))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype; ``float32`` of what is decoded."""
        return "float32" if name in self._packed else super().dtype(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the headers alone."""
        packed = self._packed.get(name)
        return super().shape(name) if packed is None else packed.shape

    @cached_property
    def decoded_from(self) -> frozenset[str]:
        """Names of the stored tensors that reading decodes, scales among them."""
        return frozenset(name for linear in self._packed.values() for name in linear.sources)

    def has_zero_scales(self, name: str) -> bool:
        """Whether a weight that is zero throughout is so because all of its scales are."""
        packed = self._packed.get(name)
        if packed is None:
            return super().has_zero_scales(name)
        if bool(self._stored(packed.scale).float().any()):
            return False
        # a float8 weight of zeroes may have any scale; integers stand for zero only with a scale
        return name not in packed.sources or bool(self._stored(name).float().any())

    def numbers_under(self, name: str, scales: Tensor) -> Tensor | None:
        """What is stored of a weight where scales are selected, before they are multiplied.

        Args:
            name: of a weight, as the model calls it.
            scales: a bool for each of its scales, in their order.

        Returns:
            Float32 in the shape of the weight, zero where scales are not selected; NVFP4's is
            still multiplied by the one factor for all. None: the weight is not decoded here.
        """
        packed = self._packed.get(name)
        if packed is None:
            return None
        tensors = {source: self._stored(source) for source in packed.sources}
        tensors[packed.scale] = scales.view(tensors[packed.scale].shape).float()
        numbers = torch.empty(packed.shape)
        packed.decode(tensors, slice(0, packed.shape[0]), numbers)
        return numbers

    def read_into(self, name: str, buffer: Tensor) -> Tensor:
        """Reads, and decodes, a tensor; see ``Weights.read_into``."""
        packed = self._packed.get(name)
        if packed is None:
            return super().read_into(name, buffer)
        return self._decode(packed, slice(0, packed.shape[0]), buffer)

    def read_rows_into(self, name: str, rows: slice | Sequence[int], buffer: Tensor) -> Tensor:
        """Reads, and decodes, output channels; see ``Weights.read_rows_into``."""
        packed = self._packed.get(name)
        if packed is None:
            return super().read_rows_into(name, rows, buffer)
        if isinstance(rows, slice):
            return self._decode(packed, slice(*rows.indices(packed.shape[0])[:2]), buffer)
        selected = _float32(buffer, (len(rows), *packed.shape[1:]))
        return torch.index_select(self[name], 0, torch.tensor(list(rows)), out=selected)

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Asks the system to fetch what is stored of these tensors."""
        stored = [
            source
            for name in names
            for source in (self._packed[name].sources if name in self._packed else (name,))
        ]
        super().read_ahead(stored, limit=limit)

    def _decode(self, packed: PackedLinear, rows: slice, buffer: Tensor) -> Tensor:
        tensors = {name: self._stored(name) for name in packed.sources}
        decoded = _float32(buffer, (rows.stop - rows.start, *packed.shape[1:]))
        packed.decode(tensors, rows, decoded)
        return decoded

    def _stored(self, name: str) -> Tensor:
        # by the stored shape and dtype: FP8 stores a weight under the name of the decoded one
        dtype = torch_dtype(super().dtype(name))
        shape = super().shape(name)
        size = math.prod(shape) * dtype.itemsize
        buffer = torch.empty(size, dtype=torch.uint8)
        self._read(name, [Span(0, size)], buffer)
        return buffer.view(dtype).view(shape)

    # What is packed, and whether it fits together.

    def _find_packed(self, quantization: Quantization) -> dict[str, PackedLinear]:
        stored = {name: super(DecodedWeights, self).shape(name) for name in super().__iter__()}
        find = _FLOATS.get(quantization.method)
        if find is not None:
            return dict(find(stored, self.stored_dtypes(), quantization))
        pack = _gptq if quantization.method == "gptq" else _awq
        modules = [name.rpartition(".")[0] for name in stored if name.endswith(".qweight")]
        return {f"{module}.weight": pack(module, stored, quantization) for module in modules}


def _float32(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A view of the start of a uint8 buffer."""
    num_bytes = math.prod(shape) * torch.float32.itemsize
    return buffer[:num_bytes].view(torch.float32).view(shape)


def _gptq(
    module: str, stored: dict[str, tuple[int, ...]], quantization: Quantization
) -> GptqLinear:
    bits = quantization.bits or 0
    (words, num_outputs), scales = _shapes(module, stored)
    num_inputs = words * 32 // bits
    groups = _num_groups(module, num_inputs, quantization)
    _expect(module, "scales", scales, (groups, num_outputs))
    zeros = (groups, -(-num_outputs * bits // 32))
    _expect(module, "qzeros", stored[f"{module}.qzeros"], zeros)
    order = stored.get(f"{module}.g_idx")
    if order is not None:
        _expect(module, "g_idx", order, (num_inputs,))
    elif quantization.desc_act:
        raise contradiction(f"{module}.g_idx is missing, although desc_act is true")
    return GptqLinear(
        name=module,
        shape=(num_outputs, num_inputs),
        quantization=quantization,
        has_groups=order is not None,
    )


def _awq(module: str, stored: dict[str, tuple[int, ...]], quantization: Quantization) -> AwqLinear:
    (num_inputs, words), scales = _shapes(module, stored)
    groups = _num_groups(module, num_inputs, quantization)
    _expect(module, "scales", scales, (groups, words * 8))
    _expect(module, "qzeros", stored[f"{module}.qzeros"], (groups, words))
    return AwqLinear(name=module, shape=(words * 8, num_inputs))


def _shapes(
    module: str, stored: dict[str, tuple[int, ...]]
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The shapes of ``qweight`` and ``scales``; checks that ``qzeros`` is a matrix too."""
    for part in _PACKED[:3]:
        shape = stored.get(f"{module}.{part}")
        if shape is None:
            raise contradiction(f"{module}.{part} is missing")
        if len(shape) != 2:  # noqa: PLR2004
            raise contradiction(f"{module}.{part} is {shape}, not a matrix")
    rows, columns = stored[f"{module}.qweight"]
    return (rows, columns), stored[f"{module}.scales"]


def _num_groups(module: str, num_inputs: int, quantization: Quantization) -> int:
    size = quantization.group_size or -1
    if size == -1:
        return 1
    if size <= 0 or num_inputs % size:
        raise contradiction(
            f"group_size {size} does not divide the {num_inputs} inputs of {module}"
        )
    return num_inputs // size


def _expect(module: str, part: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise contradiction(
            f"{module}.{part} is {shape}, but bits and group_size of the config imply {expected}"
        )
