"""Formats as they are asked for, by the names of the table."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS, cache_format, weight_format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from precheck.facts.formats import CacheFormat, WeightFormat
    from precheck.records.configuration import Configuration


def canonical(configuration: Configuration) -> Configuration:
    """The configuration with its formats by the names of the table.

    Raises:
        UsageError: there is no such format.
    """
    cache, weights = configuration.kv_cache_dtype, configuration.quantization
    return replace(
        configuration,
        kv_cache_dtype=None if cache is None else cache_format(cache).name,
        quantization=None if weights is None else weight_format(weights).name,
    )


def cache_names(names: Iterable[str]) -> tuple[str, ...]:
    """The formats of a key-value cache with these names, each once; ``all`` is every one.

    >>> cache_names(["fp8", "fp8_e4m3", "int8"])
    ('fp8_e4m3', 'int8')

    Raises:
        UsageError: there is no such format.
    """
    return _names(names, tuple(CACHE_FORMATS), cache_format)


def weight_names(names: Iterable[str]) -> tuple[str, ...]:
    """The formats of weights with these names, each once; ``all`` is every one.

    Raises:
        UsageError: there is no such format.
    """
    return _names(names, tuple(WEIGHT_FORMATS), weight_format)


def _names(
    names: Iterable[str],
    every: tuple[str, ...],
    named: Callable[[str], CacheFormat | WeightFormat],
) -> tuple[str, ...]:
    each = (every if name == "all" else (named(name).name,) for name in names)
    return tuple(dict.fromkeys(chain.from_iterable(each)))
