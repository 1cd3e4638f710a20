"""What is documented for model families in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from precheck.facts.table import read_table
from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFact:
    """A row of ``families.toml``, which says what the fields mean."""

    model_types: tuple[str, ...]
    dtype: Dtype
    effect: Verdict
    mechanism: Mechanism
    fact: str
    checkpoints: str
    sources: tuple[str, ...]
    attention: str | None = None
    inputs: str | None = None

    @property
    def links(self) -> tuple[str, ...]:
        """Where the fact is from."""
        return tuple(table().sources[name] for name in self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyTable:
    """``families.toml``."""

    read: str
    sources: dict[str, str]
    family: tuple[FamilyFact, ...]


@cache
def table() -> FamilyTable:
    """All rows."""
    return read_table("families.toml", FamilyTable)


def facts_on(model_type: str) -> tuple[FamilyFact, ...]:
    """What is documented for the family, in the order of the table."""
    return tuple(row for row in table().family if model_type in row.model_types)
