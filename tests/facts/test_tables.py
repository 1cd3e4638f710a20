"""The tables are data that people extend: their form, and that every row has its reference."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

import pytest

from precheck.facts import (
    architectures,
    attention,
    deployed_formats,
    devices,
    engines,
    families,
    float16_paths,
    formats,
    symptoms,
)
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TABLES: Mapping[str, tuple[str, Mapping[str, str], Sequence[tuple[str, ...]]]] = {
    "devices": (
        devices.table().read,
        devices.table().sources,
        [each.sources for each in devices.table().device],
    ),
    "attention": (
        attention.table().read,
        attention.table().sources,
        [each.sources for each in attention.table().implementation],
    ),
    "engines": (
        engines.table().read,
        engines.table().sources,
        [each.sources for each in engines.table().engine],
    ),
    "architectures": (
        architectures.table().read,
        architectures.table().sources,
        [each.sources for each in architectures.table().served],
    ),
    "families": (
        families.table().read,
        families.table().sources,
        [each.sources for each in families.table().family],
    ),
    "float16_paths": (
        float16_paths.table().read,
        float16_paths.table().sources,
        [each.sources for each in float16_paths.table().path],
    ),
    "symptoms": (
        symptoms.table().read,
        symptoms.table().sources,
        [each.sources for each in symptoms.table().symptom],
    ),
    "formats": (
        formats.table().read,
        formats.table().sources,
        [row.sources for row in formats.table().cache]
        + [row.sources for row in formats.table().weight],
    ),
    "deployed_formats": (
        deployed_formats.table().read,
        deployed_formats.table().sources,
        [
            row.sources
            for rows in (
                deployed_formats.table().engine,
                deployed_formats.table().condition,
                deployed_formats.table().device,
            )
            for row in rows
        ],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_source_and_every_source_is_used(name: str) -> None:
    read, sources, rows = TABLES[name]
    dt.date.fromisoformat(read)
    assert all(rows)
    used = {key for row in rows for key in row}
    assert used == set(sources)
    for link in sources.values():
        assert re.match(r"https://[\w.-]+/\S+$", link) or link.startswith("make ")


def test_every_kind_of_device_the_tool_promises_is_there() -> None:
    kinds = {each.kind for each in devices.table().device}
    assert kinds == {"cuda", "rocm", "mps", "xpu", "hpu", "npu", "cpu"}
    nvidia = {each.architecture for each in devices.table().device if each.kind == "cuda"}
    assert {"Pascal", "Volta", "Turing", "Ampere", "Ada", "Hopper", "Blackwell"} <= nvidia


def test_no_two_rows_or_products_share_a_name() -> None:
    names = [product.name.casefold() for row in devices.table().device for product in row.products]
    names += [row.id for row in devices.table().device]
    assert len(names) == len(set(names))


def test_attention_implementations_are_ordered_for_readers_by_speed_and_by_preference() -> None:
    flash = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
    assert attention.names() == ("eager", "sdpa", *flash, "flex_attention")
    assert attention.fastest_first() == (*reversed(flash), "sdpa", "flex_attention", "eager")
    preferred = sorted((*attention.names(), "owner/name"), key=attention.preference)
    assert preferred == ["sdpa", *flash, "flex_attention", "owner/name", "eager"]
    assert attention.preference("flex_attention") == attention.preference("owner/name")


def test_a_model_without_a_flag_has_eager_attention_alone() -> None:
    assert attention.supported(lambda _: False) == ("eager",)
    assert attention.supported(lambda _: True) == attention.names()


def test_only_what_runs_as_one_operation_is_refused() -> None:
    refused = [name for name in attention.names() if attention.why_unwatchable(name)]
    assert refused == ["flex_attention"]
    assert attention.why_unwatchable("owner/name") is None


def test_engines_name_dtypes_that_are_measured() -> None:
    for engine in engines.table().engine:
        assert engine.default_dtype in {"declared", *Dtype}
        assert engine.float32_becomes in {"keeps", "first", *Dtype}
        assert "{dtype}" in engine.flag or "{gguf}" in engine.flag
        assert "{flag}" in engine.command


def test_families_are_about_probes_that_there_are() -> None:
    kinds = {each.inputs for each in families.table().family}
    assert kinds <= {None, "image", "sound"}


def test_families_that_engines_refuse_are_documented() -> None:
    documented = {name for each in families.table().family for name in each.model_types}
    for engine in engines.table().engine:
        assert set(engine.refuses_float16) <= documented


def test_every_engine_but_transformers_lists_the_architectures_it_has() -> None:
    listed = {each.id for each in architectures.table().served}
    assert listed == {each.id for each in engines.table().engine} - {"transformers"}


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi", "llama_cpp"])
def test_an_architecture_that_no_engine_lists_is_not_known_to_run(engine: str) -> None:
    assert architectures.is_served(engine, "LlamaForCausalLM")
    assert not architectures.is_served(engine, "DebertaV2ForSequenceClassification")
    assert not architectures.is_served(engine, "Model")
    assert architectures.is_served("transformers", "DebertaV2ForSequenceClassification")


def test_vllm_adapts_what_it_has_to_other_tasks() -> None:
    assert architectures.is_served("vllm", "Qwen2ForTokenClassification")
    assert architectures.is_served("vllm", "Gemma2ForSequenceClassification")
    assert not architectures.is_served("vllm", "Qwen2ForQuestionAnswering")
    assert not architectures.is_served("llama_cpp", "Qwen2ForTokenClassification")
