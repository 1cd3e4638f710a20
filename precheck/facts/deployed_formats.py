"""How engines are asked for a format, and what becomes of it on a device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.device_names import capability_numbers
from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS, WeightFormat
from precheck.facts.table import read_table

if TYPE_CHECKING:
    from precheck.facts.engines import EngineName
    from precheck.facts.formats import CacheFormat

_CACHE = "kv:"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFlags:
    """A row of ``deployed_formats.toml``, which says what the fields mean."""

    id: str
    sources: tuple[str, ...]
    cache: str | None = None
    weights: str | None = None
    cache_off: str | None = None
    is_appended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What else has to be so for an engine's name to mean this format."""

    format: str
    engine: str
    words: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevices:
    """What engines do with formats on some devices."""

    formats: tuple[str, ...]
    words: str
    sources: tuple[str, ...]
    nvidia_from: tuple[int, int] | None = None
    nvidia_below: tuple[int, int] | None = None
    amd: tuple[str, ...] = ()
    is_refused: bool = False

    def is_about(self, compute_capability: str) -> bool:
        """Whether a device with this capability, ``sm_75`` or ``gfx942``, is one of them."""
        if compute_capability in self.amd:
            return True
        capability = capability_numbers(compute_capability)
        if capability is None or (self.nvidia_from, self.nvidia_below) == (None, None):
            return False
        first = self.nvidia_from or (0, 0)
        return first <= capability and (self.nvidia_below is None or capability < self.nvidia_below)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployedFormats:
    """``deployed_formats.toml``."""

    read: str
    sources: dict[str, str]
    engine: tuple[EngineFlags, ...]
    condition: tuple[Condition, ...]
    device: tuple[OnDevices, ...]


@cache
def table() -> DeployedFormats:
    """All rows."""
    return read_table("deployed_formats.toml", DeployedFormats)


class Spelling(NamedTuple):
    """How an engine is asked for a format."""

    flag: str | None
    """A flag, or a line of its own; None where none is needed, or there is no such format."""
    note: str = ""
    """What else has to be so, or why there is no flag."""
    exists: bool = True
    """Whether the engine has the format."""
    is_appended: bool = False
    """Whether the flag stands behind the command that serves."""


def spelling(name: str, *, engine: EngineName) -> Spelling:
    """How an engine is asked for a format that is written as in a configuration.

    >>> from precheck.facts.engines import EngineName
    >>> spelling("kv:fp8_e4m3", engine=EngineName.VLLM).flag
    '--kv-cache-dtype fp8_e4m3'
    >>> spelling("kv:fp8_e4m3", engine=EngineName.LLAMA_CPP).note
    'llama.cpp has no kv:fp8_e4m3'
    >>> spelling("q:int4", engine=EngineName.VLLM).note
    'a checkpoint that llm-compressor made with its scheme W4A16, without a flag'
    """
    row = _format(name)
    if row is None:  # of a later version
        return Spelling(None, note=f"{name} is not in the table of formats", exists=False)
    flags = next(each for each in table().engine if each.id == engine.value)
    pattern = flags.cache if name.startswith(_CACHE) else flags.weights
    value = row.engines.get(engine.value)
    if value is not None and pattern is not None:
        return Spelling(
            pattern.replace("{}", value),
            note=_condition(name, engine=engine),
            is_appended=flags.is_appended,
        )
    if isinstance(row, WeightFormat) and row.scheme and engine.value in _READS_SCHEMES:
        scheme = f"a checkpoint that llm-compressor made with its scheme {row.scheme}"
        return Spelling(None, note=f"{scheme}, without a flag")
    return Spelling(None, note=f"{engine.label} has no {name}", exists=False)


_READS_SCHEMES = frozenset({"vllm", "sglang"})
"""Engines that serve checkpoints of compressed-tensors: ``scheme`` in ``formats.toml``."""


def cache_off(engine: EngineName) -> str | None:
    """How an engine is told to keep keys and values in the dtype; None where no word is needed."""
    return next(each.cache_off for each in table().engine if each.id == engine.value)


def on_device(name: str, compute_capability: str | None) -> OnDevices | None:
    """What is special about a format on a device; None where it is as it was measured.

    >>> on_device("q:fp8", "sm_75").is_refused, on_device("q:fp8", "sm_90")
    (False, None)
    """
    if compute_capability is None:
        return None
    rows = (row for row in table().device if name in row.formats)
    return next((row for row in rows if row.is_about(compute_capability)), None)


def bits(name: str) -> float | None:
    """Bits that one number takes in a format, scales included; None for an unknown format.

    >>> bits("kv:fp8_e4m3"), bits("q:int4")
    (8.0, 4.125)
    """
    row = _format(name)
    return None if row is None else float(row.bits)


def _format(name: str) -> CacheFormat | WeightFormat | None:
    kind, _, bare = name.partition(":")
    return CACHE_FORMATS.get(bare) if f"{kind}:" == _CACHE else WEIGHT_FORMATS.get(bare)


def _condition(name: str, *, engine: EngineName) -> str:
    rows = (row for row in table().condition if (row.format, row.engine) == (name, engine.value))
    return next((row.words for row in rows), "")
