"""Decodes weights in float4 (NVFP4, MXFP4) to float32, as the libraries that wrote them do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.packed import as_float32

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers of E2M1; the highest of four bits is the sign.

**Source**: OCP Microscaling Formats 1.0, section 5.3.3
(https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)
"""
_BLOCK = 512
"""Output channels that are unpacked at a time, so that their indices take little memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Float4Linear:
    """Two numbers to a byte along the input, and a factor for each group of 16 or 32 of them.

    Packed is ``(out, in / 2)`` uint8, the lower four bits first. NVFP4 has a factor in
    float8_e4m3fn for 16 inputs, and one more in float32 for all of them. MXFP4 has a power of two
    for 32 inputs: float8_e8m0fnu, or uint8 with the same bits, of which 0xFF is NaN.

    **Source**: ``NVFP4PackedCompressor`` in
    https://github.com/vllm-project/compressed-tensors/blob/main/src/compressed_tensors/compressors/nvfp4/base.py;
    ``NVFP4QTensor`` in
    https://github.com/NVIDIA/Model-Optimizer/blob/main/modelopt/torch/quantization/qtensor/nvfp4_tensor.py
    """

    packed: str
    """The name of the numbers."""
    scale: str
    """The name of the factors, ``(out, in / group)``."""
    global_scale: str | None
    """The name of the factor for all; None in MXFP4."""
    is_divisor: bool
    """Whether that one is divided by, as compressed-tensors stores it."""
    shape: tuple[int, int]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        parts = (self.packed, self.scale, self.global_scale)
        return tuple(name for name in parts if name is not None)

    def decode(self, tensors: Mapping[str, Tensor], rows: slice, into: Tensor) -> None:
        """Writes output channels ``rows`` into ``into``, ``(rows, in)`` float32."""
        packed, scale = tensors[self.packed], tensors[self.scale]
        for start in range(rows.start, rows.stop, _BLOCK):
            part = slice(start, min(start + _BLOCK, rows.stop))
            decoded = into[part.start - rows.start : part.stop - rows.start]
            _multiply(packed[part], self._factors(scale[part], tensors), into=decoded)

    def _factors(self, scale: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        """What each group is multiplied by; rounded once, before the product, as the libraries."""
        factors = as_float32(scale)
        if self.global_scale is None:
            return factors
        of_all = tensors[self.global_scale].float().reshape(())
        return factors / of_all if self.is_divisor else factors * of_all


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4Experts:
    """MXFP4 as gpt-oss stores it: all experts of a layer in one tensor, transposed when read.

    ``_blocks`` is ``(experts, out, in / 32, 16)`` uint8, ``_scales`` ``(experts, out, in / 32)``
    uint8.

    **Source**: ``convert_moe_packed_tensors`` in
    https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/mxfp4.py
    """

    packed: str
    scale: str
    """The name of its exponents."""
    shape: tuple[int, int, int]
    """Experts, inputs and outputs, as the model has them."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return (self.packed, self.scale)

    def decode(self, tensors: Mapping[str, Tensor], rows: slice, into: Tensor) -> None:
        """Writes experts ``rows`` into ``into``, ``(rows, in, out)`` float32."""
        packed, scale = tensors[self.packed], tensors[self.scale]
        for index, expert in enumerate(range(rows.start, rows.stop)):
            decoded = torch.empty(self.shape[2], self.shape[1])
            _multiply(packed[expert].flatten(1), as_float32(scale[expert]), into=decoded)
            into[index] = decoded.T


def _multiply(packed: Tensor, factors: Tensor, *, into: Tensor) -> None:
    """Numbers ``(out, in / 2)`` times the factors ``(out, groups)`` of their groups."""
    numbers = _pairs()[packed.long()].flatten(1).unflatten(1, (factors.shape[1], -1))
    torch.mul(numbers, factors.unsqueeze(2), out=into.view(numbers.shape))


def _pairs() -> Tensor:
    """The two numbers of every byte, ``(256, 2)`` float32; zero has a sign too."""
    numbers = torch.tensor(_MAGNITUDES)
    signed = torch.cat([numbers, -numbers])
    every = torch.arange(256)
    return torch.stack([signed[every & 0xF], signed[every >> 4]], dim=1)
