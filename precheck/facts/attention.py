"""Attention implementations: their names, which devices run them, and what they take.

``attention.toml`` is the only list: whatever names, orders or refuses implementations asks here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from precheck.facts.table import read_table
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Callable

    from precheck.facts.hardware import Hardware


UNRANKED = 5
"""The preference of implementations that name none, kernels of the Hub among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Implementation:
    """A row of ``attention.toml``, which says what the fields mean."""

    name: str
    kinds: tuple[str, ...]
    dtypes: tuple[Dtype, ...]
    softcap: bool
    sinks: bool
    speed: int
    sources: tuple[str, ...]
    class_flag: str | None = None
    unwatchable: str | None = None
    preference: int = UNRANKED
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
        >>> [implementation("flash_attention_2").runs_on(find(name)) for name in ("T4", "L4")]
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
    return next((row for row in table().implementation if row.name == name), None)


def names() -> tuple[str, ...]:
    """The names that transformers registers; kernels of the Hub are named ``owner/name``."""
    return tuple(row.name for row in table().implementation)


def fastest_first() -> tuple[str, ...]:
    """All names, the fastest first where all of them run."""
    return tuple(row.name for row in sorted(table().implementation, key=lambda row: row.speed))


def supported(has_flag: Callable[[str], bool]) -> tuple[str, ...]:
    """The implementations that a model class says it has.

    Args:
        has_flag: whether an attribute of the class, such as ``_supports_sdpa``, is true.
    """
    return tuple(
        row.name
        for row in table().implementation
        if row.class_flag is None or has_flag(row.class_flag)
    )


def why_unwatchable(name: str) -> str | None:
    """Why the operations inside an implementation cannot be watched; None where they can."""
    row = implementation(name)
    return None if row is None else row.unwatchable


def preference(name: str) -> int:
    """The place of an implementation among configurations that are equally good otherwise."""
    row = implementation(name)
    return UNRANKED if row is None else row.preference
