"""Formats of a cache from their definitions, and caches of transformers that round with them.

Nothing of the package is used. Small floats are torch's own casts, blocks of ggml are made and read
by the package gguf, and Hadamard matrices are multiplied with as they are written down.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import gguf
import torch
from safetensors import safe_open
from transformers import DynamicCache, EncoderDecoderCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    Rounded = Callable[[Tensor], Tensor]

E4M3, E5M2, E4M3FNUZ = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz


class PlainCache(NamedTuple):
    """What is read back of keys and of values ``(batch, kv_heads, seq, head_dim)``, in float32."""

    keys: Rounded
    values: Rounded

    @classmethod
    def of_both(cls, rounded: Rounded) -> PlainCache:
        return cls(rounded, rounded)


# Without a scale.


def e4m3(states: Tensor) -> Tensor:
    return states.clamp(-448, 448).to(E4M3).float()


def e5m2(states: Tensor) -> Tensor:
    return states.clamp(-57344, 57344).to(E5M2).float()


def e4m3fnuz(states: Tensor) -> Tensor:
    return states.clamp(-240, 240).to(E4M3FNUZ).float()


def e4m3_or_nan(states: Tensor) -> Tensor:
    """464 is halfway to 480, which there is not, and goes to the even 448; what is beyond is NaN.

    Newer versions of torch saturate, so that this cannot be left to its cast.
    """
    return e4m3(states).where(states.abs() <= 464, math.nan)


def cut_off(states: Tensor, *, largest: float, bias: int, num_mantissa_bits: int) -> Tensor:
    """As vLLM's kernel for CPUs: in units that make the bias float32's, bits are cut off."""
    power = 2.0 ** (127 - bias)
    bits = (states.clamp(-largest, largest) / power).view(torch.int32)
    kept = bits & -(1 << (23 - num_mantissa_bits))
    return kept.view(torch.float32) * power


def e4m3_cut_off(states: Tensor) -> Tensor:
    return cut_off(states, largest=448, bias=7, num_mantissa_bits=3)


def e5m2_cut_off(states: Tensor) -> Tensor:
    return cut_off(states, largest=57344, bias=15, num_mantissa_bits=2)


# With scales.


def calibrated(states: Tensor) -> Tensor:
    """The largest number of the tensor becomes 448."""
    scale = states.abs().max() / 448
    return (states / scale).to(E4M3).float() * scale


def e4m3_per_token_head(states: Tensor) -> Tensor:
    scale = (states.abs().amax(-1, keepdim=True) / 448).clamp(min=1e-6)
    return e4m3(states * (1 / scale)) * scale


def int8(states: Tensor) -> Tensor:
    """A scale for each token and head; halves are rounded away from zero."""
    scale = (states.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-6)
    steps = states * (1 / scale)
    whole = steps.abs().double().add(0.5).floor().float() * steps.sign()
    return whole * scale


def int4(states: Tensor) -> Tensor:
    """Groups of 64 of a head, or one for a shorter head; with an offset."""
    groups = []
    for values in states.split(64, dim=-1):
        lowest, highest = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
        scale = (highest - lowest) / 15
        scale = scale.where(scale > 0, 1.0)
        groups.append(((values - lowest) / scale).round() * scale + lowest)
    return torch.cat(groups, dim=-1)


def with_scale(scale: float) -> Rounded:
    """A checkpoint's own: what it makes larger than 448 is clipped."""
    return lambda states: e4m3(states / scale) * scale


# In blocks of ggml.


def in_blocks(name: str) -> Rounded:
    """A row is filled up to whole blocks of 32 with copies of its last number."""
    kind = gguf.GGMLQuantizationType[name.upper()]

    def rounded(tensor: Tensor) -> Tensor:
        last = tensor[..., -1:].expand(*tensor.shape[:-1], -tensor.shape[-1] % 32)
        rows = torch.cat([tensor, last], dim=-1).numpy()
        read = torch.from_numpy(gguf.dequantize(gguf.quantize(rows, kind), kind))
        return read[..., : tensor.shape[-1]]

    return rounded


def hadamard(width: int) -> Tensor:
    """Sylvester's: the sign is the parity of the bits that row and column have in common."""
    signs = [
        [(-1) ** (row & column).bit_count() for column in range(width)] for row in range(width)
    ]
    return torch.tensor(signs, dtype=torch.float64) / math.sqrt(width)


def rotated(rounded: Rounded, *, widest: int) -> Rounded:
    """What llama.cpp makes: products with Hadamard matrices, before and behind.

    Heads that are no multiple of 64 are not rotated; one matrix is as wide as divides the head.
    """

    def stored(states: Tensor) -> Tensor:
        head_dim = states.shape[-1]
        if head_dim % 64:
            return rounded(states)
        width = min(widest, math.gcd(head_dim, 1 << 20))
        matrix = torch.block_diag(*[hadamard(width)] * (head_dim // width))
        return (rounded((states.double() @ matrix).float()).double() @ matrix).float()

    return stored


CACHES = {
    "fp8_e4m3": PlainCache.of_both(e4m3),
    "fp8_e5m2": PlainCache.of_both(e5m2),
    "fp8_e4m3_calibrated": PlainCache.of_both(calibrated),
    "int8": PlainCache.of_both(int8),
    "int4": PlainCache.of_both(int4),
    "fp8_e4m3_rz": PlainCache.of_both(e4m3_cut_off),
    "fp8_e5m2_rz": PlainCache.of_both(e5m2_cut_off),
    "fp8_e4m3_unsaturated": PlainCache.of_both(e4m3_or_nan),
    "fp8_e4m3fnuz": PlainCache.of_both(e4m3fnuz),
    "fp8_per_token_head": PlainCache.of_both(e4m3_per_token_head),
    "q8_0": PlainCache(
        rotated(in_blocks("q8_0"), widest=1 << 20), rotated(in_blocks("q8_0"), widest=64)
    ),
    "q8_0_unrotated": PlainCache.of_both(in_blocks("q8_0")),
    "q4_0": PlainCache(
        rotated(in_blocks("q4_0"), widest=1 << 20), rotated(in_blocks("q4_0"), widest=64)
    ),
    "q4_0_unrotated": PlainCache.of_both(in_blocks("q4_0")),
}
"""All but the one whose scales are a checkpoint's."""

ROTATED = ("q8_0", "q4_0")
"""Equal but for the order of sums: one number in some hundreds rounds the other way."""


def with_stored_scales(folder: Path) -> list[PlainCache]:
    """Of every layer, with the scales that a checkpoint stores."""
    scales: dict[int, dict[str, float]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118  it is no mapping
                if name.endswith(("k_scale", "v_scale")):
                    layer = int(name.split(".")[2])
                    scales.setdefault(layer, {})[name[-7]] = stored.get_tensor(name).item()
    return [
        PlainCache(with_scale(scales[layer]["k"]), with_scale(scales[layer]["v"]))
        for layer in range(len(scales))
    ]


class RoundingCache(DynamicCache):
    """Rounds what it is given, and keeps it as any cache does.

    Args:
        plain: of every layer, or one for all.
        config: the model's.
    """

    def __init__(self, plain: PlainCache | list[PlainCache], config: Any) -> None:
        super().__init__(config=config)
        self.plain = plain

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        plain = self.plain[layer_idx] if isinstance(self.plain, list) else self.plain
        keys, values = (
            rounded(states.float()).to(states.dtype)
            for rounded, states in zip(plain, (key_states, value_states), strict=True)
        )
        return super().update(keys, values, layer_idx, *args, **kwargs)


def rounding_cache(plain: PlainCache | list[PlainCache], config: Any) -> Any:
    own = RoundingCache(plain, config)
    if not config.is_encoder_decoder:
        return own
    return EncoderDecoderCache(own, RoundingCache(plain, config))
