"""Which architectures an engine has code for, as its source lists them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from precheck.facts.table import read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A row of ``architectures.toml``, which says what the fields mean."""

    id: str
    architectures: frozenset[str]
    sources: tuple[str, ...]
    endings: tuple[str, ...] = ()

    def has(self, architecture: str) -> bool:
        """Whether the engine has code for it, or adapts what it has code for."""
        if architecture in self.architectures:
            return True
        ending = next((each for each in self.endings if architecture.endswith(each)), None)
        if ending is None:
            return False
        base = architecture.removesuffix(ending)
        return any(f"{base}{other}" in self.architectures for other in self.endings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTable:
    """``architectures.toml``."""

    read: str
    sources: dict[str, str]
    served: tuple[Served, ...]


@cache
def table() -> ServedTable:
    """All rows."""
    return read_table("architectures.toml", ServedTable)


def is_served(engine: str, architecture: str) -> bool:
    """Whether the engine with this id is known to run the architecture.

    >>> is_served("vllm", "Qwen2ForCausalLM"), is_served("vllm", "Qwen2ForSequenceClassification")
    (True, True)
    >>> is_served("vllm", "DebertaV2ForSequenceClassification")
    False
    """
    row = next((each for each in table().served if each.id == engine), None)
    return row is None or row.has(architecture)
