"""Inference engines: what each does by default, by its source on the date given."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache

from precheck.facts.table import read_table
from precheck.records.precision import Dtype


class EngineName(StrEnum):
    """The engines as they are typed."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    SGLANG = "sglang"
    LLAMA_CPP = "llama.cpp"
    TGI = "tgi"

    @property
    def label(self) -> str:
        """As the engine spells itself."""
        return engine(self.value.replace(".", "_")).name


class Below(StrEnum):
    """What an engine does on a GPU without bfloat16."""

    FALLS_BACK = "falls_back"
    FORCES = "forces"
    KEEPS = "keeps"


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A row of ``engines.toml``, which says what the fields mean."""

    id: str
    name: str
    version: str
    command: str
    flag: str
    kinds: tuple[str, ...]
    below_bfloat16: Below
    float32_becomes: str
    default_dtype: str
    dtypes: tuple[Dtype, ...]
    scores_in_float32: bool
    sources: tuple[str, ...]
    min_capability: tuple[int, int] | None = None
    bfloat16_from: tuple[int, int] | None = None
    float32_pooling: Dtype | None = None
    refuses_float16: tuple[str, ...] = ()
    float32_exceptions: dict[str, Dtype] = field(default_factory=dict)
    families: dict[Dtype, tuple[str, ...]] = field(default_factory=dict)
    forced: dict[str, Dtype] = field(default_factory=dict)
    quantized: dict[str, tuple[Dtype, ...]] = field(default_factory=dict)
    quantized_from: dict[str, int] = field(default_factory=dict)
    residual_in_float32: bool = False
    gguf_command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTable:
    """``engines.toml``."""

    read: str
    sources: dict[str, str]
    engine: tuple[Engine, ...]


@cache
def table() -> EngineTable:
    """All rows."""
    return read_table("engines.toml", EngineTable)


def engine(identity: str) -> Engine:
    """The engine with this id."""
    return next(row for row in table().engine if row.id == identity)
