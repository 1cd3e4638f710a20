"""A real model server behind a real HTTP proxy: what the proxy plants is named, and nothing else.

The comparison needs no weights here: it uses what a scan saved, which makes it quick.
"""

from __future__ import annotations

import json
import math
import threading
import urllib.request
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from precheck.measure.formats.parts import Storing
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from precheck.served.request import VerifyRequest
from precheck.served.verify import verify
from tests.served.conftest import NUM_GENERATED
from tests.served.engines import Engine, serving
from tests.served.proxy import (
    Altering,
    in_front_of,
    of_rows,
    with_another_template,
    with_bos_twice,
)
from tests.served.test_plants import INT4, another_seed, codes, scaled_layer
from tests.tiny_models import BOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precheck.records.outcomes.served import Served
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


def scaled(row: dict[str, float | None]) -> dict[str, float | None]:
    """Logits times 1.1: told ones, and the rest as one token."""
    known = [value for value in row.values() if value is not None]
    rest = max(1e-12, 1 - sum(math.exp(value) for value in known))
    total = sum(math.exp(1.1 * value) for value in (*known, math.log(rest)))
    return {
        token: None if value is None else 1.1 * value - math.log(total)
        for token, value in row.items()
    }


def top_10(row: dict[str, float | None]) -> dict[str, float | None]:
    """The ten likeliest sum to 1, the others have no probability."""
    known = {token: value for token, value in row.items() if value is not None}
    kept = sorted(known, key=known.__getitem__, reverse=True)[:10]
    total = math.log(sum(math.exp(known[token]) for token in kept))
    return {token: known[token] - total if token in kept else -9999.0 for token in row}


def one_row_of_nan(_path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One position of the prompt has no numbers."""
    for choice in body.get("choices", ()):
        for told in (choice.get("prompt_logprobs") or ())[3:4]:
            for each in told.values():
                each["logprob"] = None
    return body


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


@contextmanager
def company(url: str, prompt: str) -> Iterator[None]:
    """Others ask the same server all the time."""
    is_over = threading.Event()
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 4}).encode()

    def ask() -> None:
        while not is_over.is_set():
            request = urllib.request.Request(  # noqa: S310  our own server
                f"{url}/v1/completions", data=body, headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
                assert json.load(reply)["choices"]

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        is_over.set()
        for asker in askers:
            asker.join()


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
    with (
        serving(Engine(folder=scanned.folder, configuration=runs)) as behind,
        in_front_of(behind, Altering()) as url,
    ):
        for _ in range(10):
            options: dict[str, Any] = {"request": request, "logits": saved}
            with company(url, "Some other text.") if has_company else nullcontext():
                served = verify(url, str(scanned.described), **options, observe=lambda _: None)
            assert codes(served) == []
            assert served.like == (runs,)
