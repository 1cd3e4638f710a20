"""What people see when a model fails, and what to run first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from precheck.facts.table import read_table

_REPEATED = re.compile(r"([^\w\s])\1+")
_CLOSE = 0.75
"""A misspelt word is as similar to the right one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """A row of ``symptoms.toml``, which says what the fields mean."""

    name: str
    words: tuple[str, ...]
    why: str
    first: tuple[str, ...]
    then: str
    codes: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def links(self) -> tuple[str, ...]:
        """Where people tell of it."""
        return tuple(table().sources[name] for name in self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class SymptomTable:
    """``symptoms.toml``."""

    read: str
    sources: dict[str, str]
    symptom: tuple[Symptom, ...]


@cache
def table() -> SymptomTable:
    """All rows."""
    return read_table("symptoms.toml", SymptomTable)


def find_symptom(text: str) -> Symptom | None:
    """The symptom that is called so; None if none is.

    >>> find_symptom("!!!!!!!!!!").name, find_symptom("Null embeddings").name[:15]
    ('!!!!', 'null embeddings')
    >>> find_symptom("overflow") is None
    True
    """
    return _by_words().get(_normal(text))


def close_symptoms(text: str) -> tuple[Symptom, ...]:
    """Symptoms that share the words of a text or are spelled like it, the closest first.

    >>> [row.name for row in close_symptoms("embedings null")]
    ['null embeddings, or NaN scores of a reranker']
    """
    wanted = " ".join(sorted(_normal(text).split()))
    by_sorted = {" ".join(sorted(words.split())): row for words, row in _by_words().items()}
    close = get_close_matches(wanted, by_sorted, n=3, cutoff=_CLOSE)
    found = {by_sorted[words].name: by_sorted[words] for words in close}
    return tuple(found.values())


def _normal(text: str) -> str:
    """In lower case without quotes, and with runs of one sign as four of them."""
    words = " ".join(text.casefold().split()).strip("\"'` ")
    return _REPEATED.sub(lambda run: run[1] * 4, words)


@cache
def _by_words() -> dict[str, Symptom]:
    rows = table().symptom
    return {_normal(words): row for row in rows for words in (row.name, *row.words)}
