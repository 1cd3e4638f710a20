"""The floating-point formats precheck measures, and what a run is configured by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from precheck.errors import unknown


class Dtype(StrEnum):
    """A floating-point format, by its torch name."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"

    @classmethod
    def named(cls, name: str) -> Dtype:
        """The dtype with this name: torch's, the short one, or vLLM's.

        >>> Dtype.named("fp16"), Dtype.named("half")
        (<Dtype.FLOAT16: 'float16'>, <Dtype.FLOAT16: 'float16'>)

        Raises:
            UsageError: there is no such dtype, or precheck does not measure it.
        """
        for dtype in cls:
            if name in {dtype, dtype.short, _ALIASES.get(dtype)}:
                return dtype
        raise unknown(
            "dtype", name, cls, hint="fp16, bf16, fp32, half, float and auto are understood too"
        )

    @property
    def is_reference(self) -> bool:
        """Whether runs in it are what other runs are compared with."""
        return self is Dtype.FLOAT32

    @property
    def is_half(self) -> bool:
        """Whether a number takes 16 bits."""
        return self.limits.num_bytes == 2  # noqa: PLR2004  bytes

    @property
    def limits(self) -> Limits:
        """The range of the format.

        >>> Dtype.FLOAT16.limits.max
        65504.0
        """
        return _LIMITS[self]

    @property
    def short(self) -> str:
        """The prose name.

        >>> Dtype.BFLOAT16.short
        'bf16'
        """
        return {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}[self.value]


class Accumulation(StrEnum):
    """The dtype in which a kernel accumulates the terms of a matrix product."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    """Some kernels for quantised weights, and ``allow_fp16_accumulation``; float16 runs only."""

    @classmethod
    def named(cls, name: str) -> Accumulation:
        """What a kernel accumulates in, by its torch name or short name.

        >>> Accumulation.named("fp16")
        <Accumulation.FLOAT16: 'float16'>

        Raises:
            UsageError: no kernel accumulates in that.
        """
        for accumulation in cls:
            if name in {accumulation, Dtype(accumulation).short}:
                return accumulation
        raise unknown("accumulation", name, cls, hint="--accumulation float16")


class Arithmetic(StrEnum):
    """How the matrix products of a run were computed."""

    NATIVE = "native"
    FLOAT32_ROUNDED = "float32-rounded"
    """In float32, of 16-bit operands, and rounded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Largest finite value, smallest normal and subnormal value, relative step, and size.

    **Source**: IEEE 754-2008 binary16 and binary32; bfloat16 is binary32 cut to 16 bits.
    A test equates every row with ``torch.finfo``.
    """

    max: float
    smallest_normal: float
    smallest_subnormal: float
    eps: float
    num_bytes: int


_ALIASES = {Dtype.FLOAT16: "half", Dtype.FLOAT32: "float"}
"""As vLLM spells them.

**Source**: ``STR_DTYPE_TO_TORCH_DTYPE`` in
https://github.com/vllm-project/vllm/blob/main/vllm/utils/torch_utils.py
"""

_LIMITS = {
    Dtype.FLOAT16: Limits(
        max=65504.0,
        smallest_normal=2.0**-14,
        smallest_subnormal=2.0**-24,
        eps=2.0**-10,
        num_bytes=2,
    ),
    Dtype.BFLOAT16: Limits(
        max=(2.0 - 2.0**-7) * 2.0**127,
        smallest_normal=2.0**-126,
        smallest_subnormal=2.0**-133,
        eps=2.0**-7,
        num_bytes=2,
    ),
    Dtype.FLOAT32: Limits(
        max=(2.0 - 2.0**-23) * 2.0**127,
        smallest_normal=2.0**-126,
        smallest_subnormal=2.0**-149,
        eps=2.0**-23,
        num_bytes=4,
    ),
}


def headroom_bits(abs_max: float, dtype: Dtype) -> float | None:
    """Bits between ``abs_max`` and the largest finite value of ``dtype``; None for zero.

    Negative where ``abs_max`` does not fit.

    >>> headroom_bits(32752.0, Dtype.FLOAT16)
    1.0
    """
    return math.log2(dtype.limits.max / abs_max) if abs_max > 0 else None
