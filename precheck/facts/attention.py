"""Attention implementations: which devices run them, and what they take."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from precheck.facts.table import read_table
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.facts.devices import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """A row of ``attention.toml``, which says what the fields mean."""

    name: str
    kinds: tuple[str, ...]
    dtypes: tuple[Dtype, ...]
    softcap: bool
    sinks: bool
    sources: tuple[str, ...]
    version: int = 0
    packages: tuple[str, ...] = ()
    hub_kernel: str | None = None
    min_capability: tuple[int, int] | None = None
    capabilities: tuple[int, ...] = ()
    min_major_in_transformers: int | None = None
    architectures: tuple[str, ...] = ()
    experimental: tuple[str, ...] = ()
    max_head_dim: int | None = None
    wide_head_dim: dict[str, int] = field(default_factory=dict)

    def runs_on(self, device: Hardware) -> bool | None:
        """Whether it has kernels for the device; None where that is not known.

        >>> from precheck.facts.devices import find
        >>> [implementation("flash_attention_2").runs_on(find(each)) for each in ("T4", "L4")]
        [False, True]
        """
        if device.kind not in self.kinds:
            return False
        if device.kind == "rocm" and self.packages:
            return device.compute_capability in self.architectures or None
        capability = device.capability
        if capability is None or self.min_capability is None:
            return True
        if capability < self.min_capability:
            return False
        if self.min_major_in_transformers and capability[0] < self.min_major_in_transformers:
            return False
        return capability[0] in self.capabilities or None

    def takes_head_dim(self, head_dim: int | None, device: Hardware) -> bool:
        """Whether heads of this many elements are within its limit; taken so if not known."""
        if head_dim is None or self.max_head_dim is None:
            return True
        major = "" if device.capability is None else str(device.capability[0])
        wide = self.wide_head_dim.get(major)
        if wide is None or device.capability == (9, 0):
            return head_dim <= (wide or self.max_head_dim)
        return head_dim <= self.max_head_dim or head_dim == wide


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplementationTable:
    """``attention.toml``."""

    read: str
    sources: dict[str, str]
    implementation: tuple[Implementation, ...]


@cache
def table() -> ImplementationTable:
    """All rows."""
    return read_table("attention.toml", ImplementationTable)


def implementation(name: str) -> Implementation | None:
    """The implementation with transformers' name; None for kernels that no row is about."""
    return next((each for each in table().implementation if each.name == name), None)


PREFERRED = (
    "flash_attention_4",
    "flash_attention_3",
    "flash_attention_2",
    "sdpa",
    "flex_attention",
    "eager",
)
"""Fastest first where all of them run."""
