"""Where engines compute in float16 although they were asked for another dtype."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from precheck.facts.table import read_table
from precheck.records.sizes import Operand

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware


@dataclass(frozen=True, slots=True, kw_only=True)
class Float16Path:
    """A row of ``float16_paths.toml``, which says what the fields mean."""

    id: str
    engine: str
    where: str
    kinds: tuple[str, ...]
    operand: Operand
    limit: float
    function: str
    versions: str
    effect: str
    cure: str
    sources: tuple[str, ...]
    factor: float = 1.0
    is_fixed: bool = False
    nvidia_from: tuple[int, int] | None = None
    nvidia_below: tuple[int, int] | None = None
    amd: tuple[str, ...] = ()

    def is_left_by(self, value: float) -> bool:
        """Whether an operand of this size leaves float16 there.

        >>> path = next(row for row in table().path if row.id == "llama_cuda_values")
        >>> path.is_left_by(65504.0), path.is_left_by(8 * 65504.0), path.is_left_by(8 * 65505.0)
        (False, False, True)
        """
        return self.factor * value > self.limit

    def is_about(self, device: Hardware) -> bool:
        """Whether the engine takes this path on a device.

        >>> from precheck.facts.devices import find
        >>> path = next(row for row in table().path if row.id == "llama_volta")
        >>> [path.is_about(find(name)) for name in ("V100", "T4", "MI300X")]
        [True, False, False]
        """
        if device.kind not in self.kinds:
            return False
        if self.amd and device.kind == "rocm":
            return device.compute_capability in self.amd
        capability = device.capability
        if capability is None or device.kind != "cuda":
            return True
        first, end = self.nvidia_from or (0, 0), self.nvidia_below
        return first <= capability and (end is None or capability < end)

    @property
    def links(self) -> tuple[str, ...]:
        """Where it is from."""
        return tuple(table().sources[name] for name in self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Float16PathTable:
    """``float16_paths.toml``."""

    read: str
    sources: dict[str, str]
    path: tuple[Float16Path, ...]


@cache
def table() -> Float16PathTable:
    """All rows."""
    return read_table("float16_paths.toml", Float16PathTable)
