"""A server that stores its cache in a format is named so, or not told apart; others are not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.records.configuration import Configuration
from precheck.served.compared import num_prefill
from precheck.served.fingerprint import fingerprint
from precheck.served.likelihood import distances
from precheck.served.readings import read_row
from tests.served.engines import Engine
from tests.served.test_distance import NOISE, answer_of, logits
from tests.served.test_plants import codes, verified
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from precheck.records.outcomes.served import Answer
    from precheck.served.readings import Reading

FORMATS = {"q8_0": 0.012, "int8": 0.024, "fp8_e4m3": 0.12}
"""What each costs beside :data:`NOISE`, which is what dtypes cost: on SmolLM2-135M llama.cpp's q8_0
costs eight times float16's rounding, and int8 as much as a third of bfloat16's."""
SIZES: tuple[tuple[str | None, float], ...] = (*NOISE.items(), *FORMATS.items(), (None, 0.0))


def configuration(host: str, name: str | None = None) -> Configuration:
    return Configuration.parse(f"{host}+sdpa" + (f"+kv:{name}" if name else ""))


MEASURED = [configuration(host, name) for host in NOISE for name in (None, *FORMATS)]


def error(exact: torch.Tensor, seed: int, size: float) -> torch.Tensor:
    return logits(seed, noise=size, of=exact) - exact


def named(
    host: str, name: str | None = None, *, stores_the_same: bool, share: float, has_prompts: bool
) -> Sequence[Configuration]:
    """What a server with kernels of its own is named, of three dtypes with and without formats.

    Args:
        host: dtype of the server.
        name: of its cache's format.
        stores_the_same: numbers of the cache as the run with that format.
        share: of what transformers rounds.
        has_prompts: the server tells of prompts.
    """
    answers: list[Answer] = []
    readings: dict[Configuration, dict[str, Reading]] = {one: {} for one in MEASURED}
    for number in range(0, 600, 100):
        exact = logits(number)
        runs = {each: error(exact, number + i, size) for i, (each, size) in enumerate(SIZES, 1)}
        of_format = error(exact, number + 50, dict(SIZES)[name])
        server = exact + share * error(exact, number + 60, NOISE[host])
        server = server + (runs[name] if stores_the_same else of_format)
        answer = answer_of(f"x{number}", server)
        answer = answer if has_prompts else replace(answer, prompt_places=())
        answers.append(answer)
        for one in MEASURED:
            of_run = exact + runs[one.dtype] + runs[one.kv_cache_dtype]
            readings[one][answer.name] = read_row(of_run, answer)
    rows = distances(answers, readings, {})
    num_places = sum(len(answer.places) for answer in answers)
    found = fingerprint(rows, prefill_share=sum(map(num_prefill, answers)) / num_places)
    return [rows[index].configuration for index in found.like]


@pytest.mark.parametrize("has_prompts", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("stores_the_same", [True, False])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("host", NOISE)
def test_a_format_of_the_cache_is_among_what_is_not_told_apart(
    host: str, name: str, stores_the_same: bool, share: float, has_prompts: bool
) -> None:
    """llama.cpp's q8_0 has errors as large as transformers' q8_0, and none in common with them."""
    like = named(host, name, stores_the_same=stores_the_same, share=share, has_prompts=has_prompts)
    assert configuration(host, name) in like
    if NOISE[host] < FORMATS[name]:
        assert configuration(host) not in like
    if stores_the_same and NOISE[host] < FORMATS[name]:
        assert {one.kv_cache_dtype for one in like} <= {name, None}
        assert like[0].kv_cache_dtype == name


@pytest.mark.parametrize("has_prompts", [True, False])
@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("host", NOISE)
def test_a_server_without_a_format_is_named_so_first(
    host: str, share: float, has_prompts: bool
) -> None:
    like = named(host, stores_the_same=True, share=share, has_prompts=has_prompts)
    assert like[0] == configuration(host)
    as_small = [each for each, size in FORMATS.items() if size < NOISE[host]]
    assert {one.kv_cache_dtype for one in like} <= {None, *as_small}
    assert {one.dtype.value for one in like if one.is_plain} == {host}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(
        tiny("qwen2", num_layers=2), tmp_path_factory.mktemp("checkpoint"), tokenizer=True
    )


@pytest.mark.parametrize("name", [None, *FORMATS])
@pytest.mark.parametrize("host", NOISE)
def test_an_engine_with_a_format_is_named_and_nothing_is_found(
    folder: Path, host: str, name: str | None
) -> None:
    runs = configuration(host, name)
    served = verified(
        Engine(folder=folder, configuration=runs, prompt_reads_cache=True, api="llama.cpp"),
        measured=tuple(MEASURED),
        prompts=("The capital of France is", "Why does my model"),
        num_generated=8,
        concurrency=1,
    )
    assert codes(served) == []
    assert served.like[0] == runs
