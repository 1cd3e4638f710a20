"""Number formats by name, and what the table says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from precheck.errors import UsageError
from precheck.facts.engines import EngineName
from precheck.facts.formats import (
    CACHE_FORMATS,
    WEIGHT_FORMATS,
    Granularity,
    Scale,
    cache_format,
    weight_format,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precheck.facts.formats import CacheFormat, WeightFormat

ROWS: list[CacheFormat | WeightFormat] = [*CACHE_FORMATS.values(), *WEIGHT_FORMATS.values()]


def test_names_and_aliases_of_engines_are_understood() -> None:
    assert cache_format("FP8").name == "fp8_e4m3"
    assert cache_format("int8_per_token_head").name == "int8"
    assert weight_format("fp8-per-tensor").name == "fp8_tensor"
    assert weight_format("W4A16").name == "int4"
    for name, row in CACHE_FORMATS.items():
        assert all(cache_format(known) is row for known in (name, *row.aliases))
    for name, weight in WEIGHT_FORMATS.items():
        assert all(weight_format(known) is weight for known in (name, *weight.aliases))


def test_a_wrong_name_is_answered_with_the_closest() -> None:
    with pytest.raises(UsageError, match="unknown key-value cache format: 'fp8_e4m4'") as found:
        cache_format("fp8_e4m4")
    assert "did you mean 'fp8_e4m3'?" in str(found.value.hint)
    with pytest.raises(UsageError, match="unknown quantisation: 'nvfp5'") as found:
        weight_format("nvfp5")
    assert "did you mean 'nvfp4'?" in str(found.value.hint)


@pytest.mark.parametrize("rows", [CACHE_FORMATS, WEIGHT_FORMATS], ids=["cache", "weight"])
def test_no_name_stands_for_two_formats(
    rows: Mapping[str, CacheFormat] | Mapping[str, WeightFormat],
) -> None:
    names = [name for row in rows.values() for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))


def test_engines_are_spelled_as_everywhere() -> None:
    assert {engine for row in ROWS for engine in row.engines} <= set(EngineName)


def test_a_scale_is_stored_and_a_group_has_a_size() -> None:
    parts = [part for row in CACHE_FORMATS.values() for part in (row.keys, row.values)]
    parts += [
        part
        for row in WEIGHT_FORMATS.values()
        for part in (row.weights, row.activations)
        if part is not None
    ]
    for part in parts:
        assert (part.scale is Scale.UNIT) == (part.scale_element is None)
        is_grouped = part.granularity in {Granularity.GROUP, Granularity.RUN, Granularity.BLOCK}
        assert is_grouped == (part.group_size is not None)


def test_bits_are_those_of_the_engines() -> None:
    cache = {name: row.bits for name, row in CACHE_FORMATS.items()}
    assert (cache["fp8_e4m3"], cache["int8"], cache["int4"]) == (8, 8.25, 5)
    assert (cache["q8_0"], cache["q4_0"]) == (8.5, 4.5)
    weight = {name: row.bits for name, row in WEIGHT_FORMATS.items()}
    assert (weight["mxfp4"], weight["nvfp4"], weight["nf4"]) == (4.25, 4.5, 4.5)
    assert (weight["fp8"], weight["int4"]) == (8, 4.125)
    assert (weight["q5_0"], weight["q4_k"], weight["q6_k"]) == (5.5, 4.5, 6.5625)


def test_every_format_says_where_it_was_read() -> None:
    assert all(row.source.startswith("https://") for row in ROWS)
