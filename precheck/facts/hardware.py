"""A device as far as dtypes, attention and memory are concerned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from precheck.facts.device_names import capability_numbers
from precheck.records.advice import Target
from precheck.records.finding import Confidence
from precheck.records.precision import Dtype


class Support(StrEnum):
    """How a device computes in a dtype."""

    NATIVE = "native"
    EMULATED = "emulated"
    """Stored in it, computed in float32 or in software."""
    NONE = "none"
    DEPENDS = "depends"
    """Native on some devices of the kind, emulated on others."""


class Float16Sums(StrEnum):
    """What float16 matrix products accumulate in, as torch calls them by default."""

    FLOAT32 = "float32"
    SPLIT_K = "split_k"
    """Float32 inside a tile; partial tiles may accumulate in float16."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A device as far as dtypes, attention and memory are concerned."""

    name: str
    kind: str
    """``cuda``, ``rocm``, ``mps``, ``xpu``, ``hpu``, ``npu`` or ``cpu``."""
    architecture: str
    compute_capability: str | None = None
    """``sm_75`` and so on, ``gfx942`` for AMD; None elsewhere."""
    float16: Support
    bfloat16: Support
    fp8: bool | None = None
    slow: tuple[Dtype, ...] = ()
    """Dtypes whose matrix products take longer than float32's."""
    float32_cost: float | None = None
    """Peak rate of 16-bit matrix products over that of float32."""
    float16_sums: Float16Sums = Float16Sums.UNKNOWN
    memory_bytes: int | None = None
    assumptions: tuple[str, ...] = ()
    """What is assumed, and why."""
    confidence: Confidence = Confidence.DOCUMENTED
    sources: tuple[str, ...] = ()
    """Links, or commands that measure it."""

    @property
    def target(self) -> Target:
        """As the report names it."""
        return Target(
            name=self.name,
            compute_capability=self.compute_capability,
            memory_bytes=self.memory_bytes,
            assumptions=self.assumptions,
        )

    @property
    def capability(self) -> tuple[int, int] | None:
        """Major and minor compute capability; NVIDIA only.

        >>> from precheck.facts.devices import of_capability
        >>> of_capability("sm_120").capability
        (12, 0)
        """
        return capability_numbers(self.compute_capability) if self.compute_capability else None

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether it is an accelerator without bfloat16 of its own; a CPU is only slower."""
        return self.bfloat16 is Support.EMULATED and self.kind != "cpu"

    def support(self, dtype: Dtype) -> Support:
        """How it computes in a dtype."""
        return {Dtype.FLOAT16: self.float16, Dtype.BFLOAT16: self.bfloat16}.get(
            dtype, Support.NATIVE
        )


def is_slow(dtype: Dtype, device: Hardware) -> bool:
    """Whether float32 is faster there, or the dtype is only emulated.

    >>> from precheck.facts.devices import find
    >>> is_slow(Dtype.BFLOAT16, find("T4")), is_slow(Dtype.FLOAT16, find("T4"))
    (True, False)
    """
    is_emulated = dtype is Dtype.BFLOAT16 and device.bfloat16 is Support.EMULATED
    return is_emulated or dtype in device.slow or device.support(dtype) is Support.NONE
