"""How engines are asked for formats: every name in one table is a row of the other."""

from __future__ import annotations

from itertools import combinations

import pytest

from precheck.facts import deployed_formats
from precheck.facts.deployed_formats import bits, on_device, spelling
from precheck.facts.engines import EngineName
from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS

NAMES = [*(f"kv:{name}" for name in CACHE_FORMATS), *(f"q:{name}" for name in WEIGHT_FORMATS)]
TABLE = deployed_formats.table()


def test_every_engine_has_a_row() -> None:
    assert {row.id for row in TABLE.engine} == {engine.value for engine in EngineName}


def test_only_formats_of_the_table_are_named() -> None:
    named = {row.format for row in TABLE.condition}
    named |= {name for row in TABLE.device for name in row.formats}
    assert named <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_has_a_format_can_be_asked_for_it(name: str) -> None:
    rows = CACHE_FORMATS if name.startswith("kv:") else WEIGHT_FORMATS
    row = rows[name.partition(":")[2]]
    for engine in EngineName:
        spelled = spelling(name, engine=engine)
        if engine.value in row.engines:
            assert spelled.flag is not None
            assert row.engines[engine.value] in spelled.flag
        else:
            assert spelled.flag is None
            assert spelled.note


@pytest.mark.parametrize("engine", list(EngineName))
def test_one_flag_means_two_formats_only_under_a_condition(engine: EngineName) -> None:
    for one, other in combinations(NAMES, 2):
        first, second = (spelling(name, engine=engine) for name in (one, other))
        if first.flag is not None and first.flag == second.flag:
            assert first.note != second.note, (one, other)


def test_the_flags_are_those_of_the_engines() -> None:
    assert spelling("kv:int8", engine=EngineName.VLLM).flag == (
        "--kv-cache-dtype int8_per_token_head"
    )
    assert spelling("q:nf4", engine=EngineName.TGI).flag == "--quantize bitsandbytes-nf4"
    assert spelling("kv:q8_0", engine=EngineName.LLAMA_CPP).flag == (
        "llama-server -m MODEL.gguf --cache-type-k q8_0 --cache-type-v q8_0"
    )
    assert spelling("kv:int4", engine=EngineName.TRANSFORMERS).flag == (
        'model.generate(..., cache_implementation="quantized", cache_config={"backend": "quanto"})'
    )


def test_an_unknown_format_is_no_error() -> None:
    """A report may come from a later version."""
    assert bits("kv:later") is None
    assert not spelling("q:later", engine=EngineName.VLLM).exists


@pytest.mark.parametrize(
    ("name", "where", "is_refused"),
    [
        ("q:fp8", "sm_75", False),
        ("q:fp8", "sm_86", False),
        ("q:fp8", "sm_89", None),
        ("q:fp8", "gfx942", None),
        ("q:int8", "sm_70", True),
        ("q:int8", "sm_75", None),
        ("q:int8", "sm_100", True),
        ("q:nvfp4", "sm_90", False),
        ("q:nvfp4", "sm_120", None),
        ("q:q4_0", "sm_61", None),
        ("kv:fp8_e4m3", "sm_80", False),
        ("kv:fp8_e4m3", "sm_90", None),
        ("kv:fp8_e4m3", "gfx942", True),
        ("kv:fp8_e4m3", "gfx950", None),
        ("kv:fp8_e4m3fnuz", "gfx942", None),
        ("kv:fp8_e4m3fnuz", "sm_90", True),
        ("kv:int8", "sm_75", None),
    ],
)
def test_devices_have_kernels_or_not(name: str, where: str, is_refused: bool | None) -> None:
    special = on_device(name, where)
    assert (None if special is None else special.is_refused) is is_refused


def test_nothing_is_special_where_no_capability_is_known() -> None:
    assert on_device("q:fp8", None) is None
