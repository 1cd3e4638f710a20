"""llama.cpp's own server with a trained model: silent as it is, and named what a proxy plants.

``make engines LLAMA_PYTHON=DIR/bin/python`` runs it, with an interpreter that has ``xllamacpp``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.served.__main__ import MODEL
from benchmarks.served.gguf_types import gguf_of
from benchmarks.served.servers import llama_cpp
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from precheck.served.request import VerifyRequest
from precheck.served.runs.file import SavedLogits, read_logits
from precheck.served.verify import verify
from tests.served.proxy import (
    Altering,
    company,
    in_front_of,
    of_rows,
    one_row_of_nan,
    scaled,
    top_10,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.outcomes.served import Served

MODELS = Path(os.environ.get("PRECHECK_REAL_MODELS", "build/real"))
LLAMA_PYTHON = os.environ.get("LLAMA_PYTHON", "")
pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not (LLAMA_PYTHON and (MODELS / MODEL).is_dir()), reason="make engines has both"
    ),
]
PROMPTS = (
    "The capital of France is Paris, and the river that crosses it is",
    "def add(a: int, b: int) -> int:\n    return a + b\n\nprint(add(2, 3))",
    "Once upon a time there was a small lighthouse on a rock, and in it",
)
NUM_GENERATED = 8


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> SavedLogits:
    file = tmp_path_factory.mktemp("saved") / "real.logits"
    prompts = [word for text in PROMPTS for word in ("--prompt", text)]
    command = (
        *(sys.executable, "-m", "precheck", "scan", str(MODELS / MODEL), "--attn", "sdpa"),
        *("--quick", "--dtype", "float32,float16"),
        *(*prompts, "--generate", str(NUM_GENERATED), "--save-logits", str(file), "--quiet"),
    )
    subprocess.run(command, check=True)  # noqa: S603  ours
    return read_logits(file)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    file = gguf_of(MODELS, "F16")
    with llama_cpp(LLAMA_PYTHON, model=str(file), cache="f16", flash_attention="on") as url:
        yield url


def compared(url: str, saved: SavedLogits, *, concurrency: int = 1) -> Served:
    request = VerifyRequest(
        dtypes=(Dtype.FLOAT32,), num_generated=NUM_GENERATED, concurrency=concurrency, seconds=600
    )
    model = str(MODELS / MODEL)
    return verify(url, model, request=request, logits=saved, observe=lambda _: None)


@pytest.mark.parametrize("has_company", [False, True], ids=["alone", "under-load"])
def test_a_healthy_server_is_silent_ten_times(
    server: str, saved: SavedLogits, has_company: bool
) -> None:
    asked = "/completion", {"prompt": "Some other text", "n_predict": 8}
    with in_front_of(server, Altering()) as url:
        for _ in range(10):
            with company(server, *asked) if has_company else nullcontext():
                served = compared(url, saved, concurrency=2 if has_company else 1)
            assert [finding.code for finding in served.findings] == []
            assert served.like == (Configuration.parse("float16+sdpa"),)


PLANTS: dict[str, tuple[Altering, str, str]] = {
    "scaled": (of_rows(scaled), "PC812", "times 1.1"),
    "top-k": (of_rows(top_10), "PC813", "top-k = 10"),
    "nan-row": (Altering(answer=one_row_of_nan), "PC818", "without a number"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_what_the_proxy_plants_is_named(server: str, saved: SavedLogits, name: str) -> None:
    altering, code, words = PLANTS[name]
    with in_front_of(server, altering) as url:
        served: Any = compared(url, saved)
    assert [finding.code for finding in served.findings] == [code]
    assert words in served.findings[0].message


def test_a_cache_of_few_bits_is_named(saved: SavedLogits) -> None:
    file = gguf_of(MODELS, "F32")
    with (
        llama_cpp(LLAMA_PYTHON, model=str(file), cache="q4_0", flash_attention="on") as server,
        in_front_of(server, Altering()) as url,
    ):
        served = compared(url, saved)
    assert served.has_error
    assert not served.like
