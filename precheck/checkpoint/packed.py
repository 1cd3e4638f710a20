"""Decodes quantised linears to float32, where every product of a scale and an integer is exact.

A scale has 11 significant bits and an integer at most 9, so float32 holds their product, and what
a run casts it to is what a kernel of that dtype would round it to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from precheck.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from precheck.checkpoint.quantization import Quantization

_WORD, _BYTE = 32, 8
"""Bits of a stored integer, and of its parts."""
_BLOCK = 512
"""Output channels that are unpacked at a time, so that their integers take little memory."""
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The position in a word of each of eight output channels.

**Source**: ``AWQ_REVERSE_ORDER`` in
https://github.com/casper-hansen/AutoAWQ/blob/main/awq/utils/packing_utils.py
"""


class PackedLinear(Protocol):
    """A weight ``(out, in)`` or ``(experts, out, in)`` as it is stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Outputs and inputs; before them the experts, where they are one tensor."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stored tensors it is made from."""

    @property
    def scale(self) -> str:
        """The name of its scales."""

    def decode(self, tensors: Mapping[str, Tensor], rows: slice, into: Tensor) -> None:
        """Writes output channels ``rows`` into ``into``, ``(rows, in)`` float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqLinear:
    """GPTQ: integers packed along the input, a scale and a zero point for each group of it.

    ``qweight`` is ``(in * bits / 32, out)`` int32, ``qzeros`` ``(groups, out * bits / 32)`` int32,
    ``scales`` ``(groups, out)`` float16, ``g_idx`` ``(in,)`` int32.

    **Source**: ``pack`` in
    https://github.com/AutoGPTQ/AutoGPTQ/blob/main/auto_gptq/nn_modules/qlinear/qlinear_cuda.py
    """

    name: str
    shape: tuple[int, int]
    quantization: Quantization
    has_groups: bool
    """Whether ``g_idx`` is stored."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        parts = ("qweight", "qzeros", "scales", *(("g_idx",) if self.has_groups else ()))
        return tuple(f"{self.name}.{part}" for part in parts)

    @property
    def scale(self) -> str:
        """The name of its scales."""
        return f"{self.name}.scales"

    def decode(self, tensors: Mapping[str, Tensor], rows: slice, into: Tensor) -> None:
        """Writes output channels ``rows`` into ``into``, ``(rows, in)`` float32."""
        qweight, qzeros, scales = (
            tensors[f"{self.name}.{part}"] for part in ("qweight", "qzeros", "scales")
        )
        bits = self.quantization.bits or 0
        groups = self._groups(tensors.get(f"{self.name}.g_idx"), num_groups=scales.shape[0])
        stored = unpacked(qzeros.T, bits, count=self.shape[0]).T.int()
        # the field is as wide as a weight: kernels let it wrap too
        zeros = ((stored + self.quantization.zero_offset) & ((1 << bits) - 1)).float()
        factors = scales.float()
        for start in range(rows.start, rows.stop, _BLOCK):
            part = slice(start, min(start + _BLOCK, rows.stop))
            decoded = unpacked(qweight[:, part], bits, count=self.shape[1]).float()
            if groups is None:
                grouped = decoded.unflatten(0, (scales.shape[0], -1))
                grouped.sub_(zeros[:, None, part]).mul_(factors[:, None, part])
            else:
                decoded.sub_(zeros[:, part][groups]).mul_(factors[:, part][groups])
            into[part.start - rows.start : part.stop - rows.start] = decoded.T

    def _groups(self, stored: Tensor | None, *, num_groups: int) -> Tensor | None:
        """The group of every input channel, ``(in,)`` int64; None where groups are consecutive.

        Raises:
            CheckpointCorruptError: stored groups that do not exist, or are in another order than
                the config says.
        """
        if stored is None:
            return None
        num_inputs = self.shape[1]
        consecutive = torch.arange(num_inputs) // (num_inputs // num_groups)
        groups = stored.long()
        if int(groups.min()) < 0 or int(groups.max()) >= num_groups:
            raise contradiction(
                f"{self.name}.g_idx refers to group {int(groups.max())} of {num_groups}"
            )
        if not self.quantization.desc_act and not torch.equal(groups, consecutive):
            raise contradiction(f"{self.name}.g_idx is not in order, although desc_act is false")
        return groups if self.quantization.desc_act else None


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqLinear:
    """AWQ: integers packed along the output, eight to a word in an order of their own.

    ``qweight`` is ``(in, out / 8)`` int32, ``qzeros`` ``(groups, out / 8)`` int32, ``scales``
    ``(groups, out)`` float16.
    """

    name: str
    shape: tuple[int, int]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return tuple(f"{self.name}.{part}" for part in ("qweight", "qzeros", "scales"))

    @property
    def scale(self) -> str:
        """The name of its scales."""
        return f"{self.name}.scales"

    def decode(self, tensors: Mapping[str, Tensor], rows: slice, into: Tensor) -> None:
        """Writes output channels ``rows`` into ``into``, ``(rows, in)`` float32."""
        qweight, qzeros, scales = (tensors[name] for name in self.sources)
        zeros = _in_order(qzeros)
        group_size = self.shape[1] // scales.shape[0]
        step = _BLOCK  # a multiple of the eight in a word
        for start in range(rows.start - rows.start % 8, rows.stop, step):
            stop = min(start + step, self.shape[0])
            integers = _in_order(qweight[:, start // 8 : -(-stop // 8)])
            part = slice(start, start + integers.shape[1])
            shifted = integers - zeros[:, part].repeat_interleave(group_size, dim=0)
            factor = scales[:, part].float().repeat_interleave(group_size, dim=0)
            decoded = (shifted.float() * factor).T
            first, last = max(start, rows.start), min(part.stop, rows.stop)
            into[first - rows.start : last - rows.start] = decoded[first - start : last - start]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Linear:
    """Fine-grained FP8: a weight in float8 ``(..., out, in)``, and a factor for each block of it.

    Factors are ``(..., blocks of out, blocks of in)`` in a floating-point dtype, or the exponents
    of powers of two: float8_e8m0fnu, or uint8 with the same bits.

    **Source**: ``weight_scale_inv`` in
    https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md;
    ``Fp8Dequantize`` in
    https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/finegrained_fp8.py
    """

    name: str
    """Of the weight as it is stored."""
    scale: str
    """The name of its factors."""
    shape: tuple[int, ...]
    block_size: tuple[int, int]

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the stored tensors."""
        return (self.name, self.scale)

    def decode(self, tensors: Mapping[str, Tensor], rows: slice, into: Tensor) -> None:
        """Writes ``rows`` of the first dimension into ``into``, ``(rows, ...)`` float32."""
        weight, factors = (tensors[name] for name in self.sources)
        height, width = self.block_size
        *experts, outputs, inputs = self.shape
        by_block = as_float32(factors).reshape(*experts, -(-outputs // height), -1)
        if experts:
            by_row = by_block[rows].repeat_interleave(height, dim=-2)[..., :outputs, :]
        else:
            by_row = by_block[torch.arange(rows.start, rows.stop) // height]
        by_element = by_row.repeat_interleave(width, dim=-1)[..., :inputs]
        torch.mul(weight[rows].float(), by_element, out=into)


def as_float32(factors: Tensor) -> Tensor:
    """Factors as numbers; integers are exponents, with the bias of float8_e8m0fnu."""
    if factors.dtype is torch.uint8:
        factors = factors.view(torch.float8_e8m0fnu)
    return factors.float()


def _in_order(packed: Tensor) -> Tensor:
    """``(n, words)`` int32 of AWQ as ``(n, 8 * words)`` int64 in the order of the channels."""
    shifts = torch.tensor(_AWQ_ORDER) * 4
    fields = (packed.long() & 0xFFFFFFFF).unsqueeze(-1) >> shifts
    return fields.flatten(1) & 0xF


def unpacked(packed: Tensor, bits: int, *, count: int) -> Tensor:
    """Integers of ``bits`` each out of 32-bit words along the first dimension, lowest bits first.

    Args:
        packed: ``(words, n)`` int32.
        bits: 2, 3, 4 or 8; with 3, some lie across two words.
        count: how many integers a column holds.

    Returns:
        ``(count, n)`` uint8.
    """
    if _BYTE % bits:
        return _unpacked_across(packed, bits, count=count)
    # the lowest byte of a word comes first, as torch has it on the machines it is built for;
    # flat, because a single row counts as contiguous whatever its stride, and is not viewed then
    in_bytes = packed.flatten().view(torch.uint8).view(*packed.shape, 4).movedim(2, 1)
    fields = [(in_bytes >> shift) & ((1 << bits) - 1) for shift in range(0, _BYTE, bits)]
    return torch.stack(fields, dim=2).flatten(0, 2)[:count]


def _unpacked_across(packed: Tensor, bits: int, *, count: int) -> Tensor:
    """The same where integers lie across the ends of bytes and words."""
    words = packed.long() & 0xFFFFFFFF
    first_bit = torch.arange(count) * bits
    word, offset = first_bit // _WORD, (first_bit % _WORD).unsqueeze(1)
    following = words[(word + 1).clamp(max=words.shape[0] - 1)]
    shifted = (words[word] >> offset) | (following << (_WORD - offset))
    return torch.bitwise_and(shifted, (1 << bits) - 1).to(torch.uint8)


def contradiction(what: str) -> CheckpointCorruptError:
    """The error for tensors that contradict the config."""
    return CheckpointCorruptError(
        f"quantisation contradicts the tensors: {what}",
        hint="use the config.json that belongs to these weights, or quantise the model again",
    )
