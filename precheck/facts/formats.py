"""Number formats of key-value caches, weights and activations, as engines store them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from precheck.errors import unknown
from precheck.facts.table import read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

ELEMENTS_PER_HEAD = 128
"""The ``head_dim`` by which scales per head are counted: most models have it."""


NUM_IN_SUPER_BLOCK = 256
"""Numbers of ggml's K-quants that share one in float16."""


class Element(StrEnum):
    """What one number is stored as."""

    E4M3 = "e4m3"
    """``float8_e4m3fn``: up to 448, no Inf."""
    E4M3FNUZ = "e4m3fnuz"
    """``float8_e4m3fnuz`` of MI300: up to 240, no Inf, one zero."""
    E5M2 = "e5m2"
    E2M1 = "e2m1"
    """4 bits: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""
    NF4 = "nf4"
    """16 quantiles of a normal distribution, from -1 to 1."""
    INT8 = "int8"
    INT6 = "int6"
    INT5 = "int5"
    INT4 = "int4"

    @property
    def num_bits(self) -> int:
        """Of one number, without its scale."""
        return {"int6": 6, "int5": 5, "int4": 4, "e2m1": 4, "nf4": 4}.get(self.value, 8)

    @property
    def max(self) -> float:
        """The largest number of the format, before it is scaled."""
        return _LARGEST[self]


_LARGEST = {
    Element.E4M3: 448.0,
    Element.E4M3FNUZ: 240.0,
    Element.E5M2: 57344.0,
    Element.E2M1: 6.0,
    Element.NF4: 1.0,
    Element.INT8: 127.0,
    Element.INT6: 31.0,
    Element.INT5: 15.0,
    Element.INT4: 7.0,
}


class Granularity(StrEnum):
    """Which numbers share a scale."""

    TENSOR = "tensor"
    TOKEN = "token"  # noqa: S105  no password
    """The last dimension of activations."""
    HEAD = "head"
    """The last dimension of a cache: each token and head has its own."""
    CHANNEL = "channel"
    """The last dimension of a weight: each output has its own."""
    GROUP = "group"
    """``group_size`` consecutive numbers of the last dimension."""
    RUN = "run"
    """``group_size`` consecutive numbers of a matrix, which may reach into the next row."""
    BLOCK = "block"
    """A square of ``group_size`` outputs and as many inputs of a weight."""


class Scale(StrEnum):
    """What a scale is computed from."""

    UNIT = "unit"
    """There is none."""
    AMAX = "amax"
    """The largest magnitude becomes the largest number of the element."""
    RANGE = "range"
    """Twice the largest magnitude is divided into all steps of an integer: 15 or 255."""
    SIGNED_AMAX = "signed_amax"
    """What is largest in magnitude becomes the lowest integer; the scale has a sign."""
    MIN_MAX = "min_max"
    """Lowest and highest become the lowest and the highest integer."""
    SEARCHED = "searched"
    """The one of some near the largest magnitude that gives the least error: ggml's Q6_K."""
    SEARCHED_MIN_MAX = "searched_min_max"
    """Scale and offset near lowest and highest that give the least error: ggml's Q4_K."""
    EXPONENT = "exponent"
    """A power of two that brings the largest magnitude to 3.5 up to 7 in E2M1, 224 up to 448 in
    E4M3: OCP Microscaling Formats 1.0, with the rounding of compressed-tensors and vLLM."""


class ScaleElement(StrEnum):
    """What a scale is stored as."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    """Rounded after the numbers were divided by it: that is how ggml does it."""
    BFLOAT16 = "bfloat16"
    E4M3 = "e4m3"
    """Times one number in float32 for the tensor."""
    E8M0 = "e8m0"
    INT8 = "int8"
    """Times one number in float16 for 256 numbers."""
    INT6 = "int6"
    """Times one number in float16 for 256 numbers."""

    @property
    def num_bits(self) -> int:
        """Of one scale."""
        return {"float32": 32, "float16": 16, "bfloat16": 16, "int6": 6}.get(self.value, 8)


class Rotation(StrEnum):
    """What a vector of a cache is multiplied by before it is stored, and again when it is read.

    A Hadamard matrix spreads an outlier over all numbers of the vector. Scores stay what they were
    where queries are rotated too; that of values is taken back from the output of attention.
    """

    HADAMARD_64 = "hadamard_64"
    """64 numbers at a time."""
    HADAMARD_WIDEST = "hadamard_widest"
    """The largest power of two that divides the length, at least 64."""


class Multiplier(StrEnum):
    """What numbers are multiplied by, not divided by their scale: ties may round otherwise."""

    RECIPROCAL = "reciprocal"
    """That of the scale."""
    QUOTIENT = "quotient"
    """The largest number of the element, divided by the largest magnitude."""


class Rounding(StrEnum):
    """What becomes of a number halfway between two that are stored."""

    HALF_EVEN = "half_even"
    HALF_AWAY = "half_away"
    """From zero."""
    HALF_UP = "half_up"
    TOWARD_ZERO = "toward_zero"
    """Not to the nearest: what does not fit is cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How a tensor is stored."""

    element: Element
    granularity: Granularity
    scale: Scale
    group_size: int | None = None
    scale_element: ScaleElement | None = None
    """None without a scale."""
    smallest_scale: float = 0.0
    """A scale is never below it."""
    multiplied_by: Multiplier | None = None
    """None where numbers are divided by the scale."""
    rounding: Rounding = Rounding.HALF_EVEN
    rotation: Rotation | None = None
    fallback: Numbers | None = None
    """How rows are stored that are not a multiple of 256 numbers."""
    saturates: bool = True
    """What is beyond the largest number becomes it; else NaN, and Inf where the element has one."""

    @property
    def has_global_scale(self) -> bool:
        """Whether scales are multiples of one float32 number for the whole tensor (NVFP4)."""
        return self.scale_element is ScaleElement.E4M3

    @property
    def is_symmetric(self) -> bool:
        """Whether zero is stored as zero, without an offset."""
        return self.scale not in {Scale.MIN_MAX, Scale.SEARCHED_MIN_MAX}

    @property
    def num_per_scale(self) -> int | None:
        """How many numbers share a scale; None for so many that it does not count."""
        if self.granularity is Granularity.HEAD:
            return ELEMENTS_PER_HEAD
        if self.granularity is Granularity.BLOCK:
            return self.group_size and self.group_size**2
        return self.group_size

    @property
    def bits(self) -> float:
        """Bits that one number takes, its share of scale and offset included."""
        if self.scale_element is None or self.num_per_scale is None:
            return self.element.num_bits
        num_stored = 1 if self.is_symmetric else 2
        bits = self.element.num_bits + num_stored * self.scale_element.num_bits / self.num_per_scale
        if self.scale_element in {ScaleElement.INT8, ScaleElement.INT6}:
            bits += num_stored * ScaleElement.FLOAT16.num_bits / NUM_IN_SUPER_BLOCK
        return bits

    def in_rows_of(self, num_elements: int) -> Numbers:
        """How rows of this length are stored: ``fallback`` where super-blocks do not fill them."""
        if self.fallback is None or num_elements % NUM_IN_SUPER_BLOCK == 0:
            return self
        return self.fallback


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFormat:
    """A row of ``formats.toml``: how keys and values are stored."""

    name: str
    description: str
    keys: Numbers
    values: Numbers
    sources: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    engines: dict[str, str] = field(default_factory=dict)

    @property
    def takes_stored_scales(self) -> bool:
        """Whether its scales are those of the checkpoint."""
        return self.name.endswith("_checkpoint")

    @property
    def bits(self) -> float:
        """Bits that a number of the cache takes, scales included."""
        return (self.keys.bits + self.values.bits) / 2

    @property
    def source(self) -> str:
        """Where it was read."""
        return table().sources[self.sources[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """A row of ``formats.toml``: how weights are stored, and what they are multiplied with."""

    name: str
    description: str
    weights: Numbers
    sources: tuple[str, ...]
    activations: Numbers | None = None
    """None where they stay in the dtype of the run."""
    aliases: tuple[str, ...] = ()
    engines: dict[str, str] = field(default_factory=dict)
    scheme: str | None = None
    """Of compressed-tensors: what llm-compressor makes a checkpoint with."""

    @property
    def bits(self) -> float:
        """Bits that a number of the weights takes, scales included."""
        return self.weights.bits

    @property
    def source(self) -> str:
        """Where it was read."""
        return table().sources[self.sources[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatTable:
    """``formats.toml``."""

    read: str
    sources: dict[str, str]
    cache: tuple[CacheFormat, ...]
    weight: tuple[WeightFormat, ...]


@cache
def table() -> FormatTable:
    """All rows."""
    return read_table("formats.toml", FormatTable)


CACHE_FORMATS: Mapping[str, CacheFormat] = MappingProxyType(
    {row.name: row for row in table().cache}
)
"""The formats of a key-value cache by name, in the order of the table."""

WEIGHT_FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {row.name: row for row in table().weight}
)
"""The formats of weights and activations by name, in the order of the table."""


def cache_format(name: str) -> CacheFormat:
    """The cache format with this name, or that an engine calls so.

    >>> cache_format("fp8").name
    'fp8_e4m3'

    Raises:
        UsageError: there is none.
    """
    return _named(name, CACHE_FORMATS, what="key-value cache format")


def weight_format(name: str) -> WeightFormat:
    """The format of weights with this name, or that an engine calls so.

    >>> weight_format("fp8_per_channel").name
    'fp8'

    Raises:
        UsageError: there is none.
    """
    return _named(name, WEIGHT_FORMATS, what="quantisation")


Format = TypeVar("Format", CacheFormat, WeightFormat)


def _named(name: str, rows: Mapping[str, Format], *, what: str) -> Format:
    given = name.lower().replace("-", "_")
    aliases = {alias: row for row in rows.values() for alias in row.aliases}
    found = rows.get(given) or aliases.get(given)
    if found is None:
        raise unknown(what, name, rows, hint=f"{', '.join(aliases)} are understood too")
    return found
