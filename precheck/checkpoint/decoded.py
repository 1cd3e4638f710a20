"""The tensors of a quantised checkpoint as plain ones: packed linears are decoded when read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.packed import (
    AwqLinear,
    Fp8Linear,
    GptqLinear,
    PackedLinear,
    contradiction,
)
from precheck.checkpoint.shards import Span
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.checkpoint.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from precheck.checkpoint.quantization import Quantization

_PACKED = ("qweight", "qzeros", "scales", "g_idx")
_ALSO_STORED = (".weight_scale_inv", ".activation_scale", ".input_scale")


class DecodedWeights(Weights):
    """The mapping from name to tensor that the model takes: ``x.weight`` for ``x.qweight``.

    Decoded tensors are float32; the others are as they are stored.

    Args:
        files: the shards.
        quantization: how they are packed; a method that is decoded here.

    Raises:
        CheckpointCorruptError: shapes that contradict each other or the settings.
    """

    def __init__(self, files: Sequence[Path], quantization: Quantization) -> None:
        super().__init__(files)
        try:
            self._packed = self._find_packed(quantization)
        except BaseException:
            self.close()
            raise
        packed = {name for linear in self._packed.values() for name in linear.sources}
        plain = (
            name
            for name in super().__iter__()
            if name not in packed and not name.endswith(_ALSO_STORED)
        )
        self._names = dict.fromkeys([*self._packed, *plain])
        if not self._packed:
            raise contradiction(f"no tensor is packed the way {quantization.method} packs them")

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
        selected = _float32_matrix(buffer, len(rows), packed.shape[1])
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
        decoded = _float32_matrix(buffer, rows.stop - rows.start, packed.shape[1])
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
        packed: dict[str, PackedLinear] = {}
        for name, shape in stored.items():
            module, _, part = name.rpartition(".")
            linear: PackedLinear | None = None
            if part == "qweight" and quantization.method == "gptq":
                linear = _gptq(module, stored, quantization)
            elif part == "qweight" and quantization.method == "awq":
                linear = _awq(module, stored, quantization)
            elif part == "weight_scale_inv" and quantization.method == "fp8":
                linear = _fp8(module, stored, shape, quantization)
            if linear is not None:
                packed[f"{module}.weight"] = linear
        return packed


def _float32_matrix(buffer: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """A view of the start of a uint8 buffer."""
    num_bytes = num_rows * num_columns * torch.float32.itemsize
    return buffer[:num_bytes].view(torch.float32).view(num_rows, num_columns)


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
        raise contradiction(f"{module}.g_idx is missing, desc_act is true")
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


def _fp8(
    module: str,
    stored: dict[str, tuple[int, ...]],
    factors: tuple[int, ...],
    quantization: Quantization,
) -> Fp8Linear:
    weight = stored.get(f"{module}.weight")
    if weight is None or len(weight) != 2:  # noqa: PLR2004
        raise contradiction(f"{module}.weight_scale_inv has no matrix beside it")
    rows, columns = weight
    height, width = quantization.block_size or (rows, columns)
    blocks = (-(-rows // height), -(-columns // width))
    if math.prod(factors) != math.prod(blocks) or (factors and factors != blocks):
        raise contradiction(
            f"{module}.weight_scale_inv is {factors}, a weight of {weight} in blocks of "
            f"{height} x {width} has {blocks}"
        )
    return Fp8Linear(name=module, shape=(rows, columns), block_size=(height, width))


def _shapes(
    module: str, stored: dict[str, tuple[int, ...]]
) -> tuple[tuple[int, int], tuple[int, ...]]:
    """The shapes of ``qweight`` and ``scales``; checks that ``qzeros`` is a matrix too."""
    for part in _PACKED[:3]:
        shape = stored.get(f"{module}.{part}")
        if shape is None:
            raise contradiction(f"{module}.{part} is missing")
        if len(shape) != 2:  # noqa: PLR2004
            raise contradiction(f"{module}.{part} is {shape}, no matrix")
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
            f"{module}.{part} is {shape}, by bits and group_size of the config it is {expected}"
        )
