"""A real model server behind a real HTTP proxy: what the proxy plants is named, and nothing else.

The comparison needs no weights here: it uses what a scan saved, which makes it quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from precheck.errors import PrecheckError
from precheck.measure.formats.parts import Storing
from precheck.records.configuration import Configuration
from precheck.records.outcomes.served import Served
from precheck.records.precision import Dtype
from precheck.render.formats.served_report import render_bug_report, render_json
from precheck.render.screens.served import render_served
from precheck.served.request import VerifyRequest
from precheck.served.verify import verify
from tests.served.conftest import NUM_GENERATED
from tests.served.engines import Engine, serving
from tests.served.proxy import (
    Altering,
    company,
    in_front_of,
    of_rows,
    one_row_of_nan,
    scaled,
    top_10,
    with_another_template,
    with_bos_twice,
)
from tests.served.test_plants import INT4, another_seed, codes, scaled_layer
from tests.tiny_models import BOS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.served.conftest import Scanned


def through(scanned: Scanned, altering: Altering, *, concurrency: int = 4, **engine: Any) -> Served:
    """What is found of a server behind a proxy."""
    request = VerifyRequest(
        dtypes=(Dtype.FLOAT32,), num_generated=NUM_GENERATED, concurrency=concurrency
    )
    with (
        serving(Engine(folder=scanned.folder, **engine)) as behind,
        in_front_of(behind, altering) as url,
    ):
        return verify(
            url,
            str(scanned.described),
            request=request,
            logits=scanned.saved,
            observe=lambda _: None,
        )


LAYER_1 = Storing(is_stored=lambda part: part.startswith("1."))
PLANTS: dict[str, tuple[Callable[[Scanned], Altering], dict[str, Any], str, str]] = {
    "bos-twice": (
        lambda scanned: with_bos_twice(BOS, Engine(folder=scanned.folder).encode),
        {},
        "PC801",
        "BOS stands twice",
    ),
    "template": (
        lambda _: Altering(request=with_another_template),
        {},
        "PC802",
        "another prompt",
    ),
    "seed": (lambda _: Altering(), {"change": another_seed}, "PC811", "another checkpoint"),
    "layer": (lambda _: Altering(), {"change": scaled_layer}, "PC810", "none of the measured"),
    "scaled": (lambda _: of_rows(scaled), {}, "PC812", "times 1.1"),
    "top-k": (lambda _: of_rows(top_10), {}, "PC813", "top-k = 10"),
    "nan-row": (lambda _: Altering(answer=one_row_of_nan), {}, "PC818", "without a number"),
    "cache-layer": (
        lambda _: Altering(),
        {"configuration": INT4, "storing": LAYER_1},
        "PC816",
        "prompts agree with float32",
    ),
}


@pytest.mark.parametrize("name", PLANTS)
def test_what_the_proxy_plants_is_named(scanned: Scanned, name: str) -> None:
    make, engine, code, words = PLANTS[name]
    served = through(scanned, make(scanned), **engine)
    assert codes(served) == [code]
    assert words in served.findings[0].message
    advice = served.findings[0].advice
    assert ("scan MODEL --kv-cache-dtype" in advice) == ("--kv-cache-dtype all" in advice)
    assert ("--kv-cache-dtype all" in advice) == (code in {"PC810", "PC816"})


@pytest.mark.parametrize("has_company", [False, True], ids=["alone", "under-load"])
@pytest.mark.parametrize("configuration", ["float32+sdpa", "bfloat16+sdpa"])
def test_a_healthy_server_behind_a_proxy_is_silent_ten_times(
    scanned: Scanned, configuration: str, has_company: bool
) -> None:
    runs = Configuration.parse(configuration)
    request = VerifyRequest(
        dtypes=(Dtype.FLOAT32,),
        num_generated=NUM_GENERATED,
        concurrency=4 if has_company else 1,
    )
    saved = scanned.saved
    asked = "/v1/completions", {"prompt": "Some other text.", "max_tokens": 4}
    with (
        serving(Engine(folder=scanned.folder, configuration=runs)) as behind,
        in_front_of(behind, Altering()) as url,
    ):
        for _ in range(10):
            options: dict[str, Any] = {"request": request, "logits": saved}
            with company(url, *asked) if has_company else nullcontext():
                served = verify(url, str(scanned.described), **options, observe=lambda _: None)
            assert codes(served) == []
            assert served.like == (runs,)


LIES: tuple[Any, ...] = (
    None, -1, 0, 2**31, 2**70, 1e308, float("nan"), float("-inf"), "", "x", "\x1b[31m", [], [[]],
    {}, {"a": {}}, True,
)  # fmt: skip
EXAMPLES = int(os.environ.get("PRECHECK_FUZZ_EXAMPLES", "4"))


def with_lies(chosen: random.Random, node: Any) -> Any:
    """The same with some values replaced, at any depth."""
    if chosen.random() < 0.02:
        return chosen.choice(LIES)
    if isinstance(node, dict):
        return {key: with_lies(chosen, value) for key, value in node.items()}
    if isinstance(node, list):
        return [with_lies(chosen, value) for value in node]
    return node


@pytest.mark.parametrize("api", ["vllm", "llama.cpp"])
@pytest.mark.parametrize("seed", range(EXAMPLES))
def test_answers_that_lie_are_judged_or_are_an_error_of_ours(
    scanned: Scanned, seed: int, api: str
) -> None:
    chosen = random.Random(seed)  # noqa: S311
    lying = Altering(answer=lambda _path, body: with_lies(chosen, body))
    with contextlib.suppress(PrecheckError):
        served = through(scanned, lying, concurrency=1, api=api)
        assert Served.from_dict(json.loads(render_json(served))) == served
        assert "\x1b" not in render_served(served, width=80, colour=False)
        assert render_bug_report(served)
