"""An engine with a quantised cache against itself without, and what was predicted: make engine.

An engine tells its 50 most likely tokens of every position; what it leaves out counts as one. The
table has KL(without, with the format) of the engine, of precheck's scan (against float32) and of
each emulation, their ratio, and how far apart the two are with the format: KL(engine, emulation).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

import precheck
from benchmarks.engines.asking import EngineError, Likely, answer_of
from benchmarks.engines.emulation import (
    FP8,
    Emulation,
    in_llama_cpp,
    in_vllm,
    log_probabilities,
)
from benchmarks.served.gguf_types import gguf_of
from precheck.measure.probes.builtin import HELD_OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "smollm2-135m"
TOP = 50
"""Tokens that an engine tells of each position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine's interpreter, the script that it runs, and what it is asked for."""

    python: str
    script: str
    model: Path
    dtype: str
    amx: bool
    """Whether vLLM may use AMX, which it does in bfloat16 only."""
    without: str
    """What it calls a cache that is not quantised."""
    emulations: Callable[[str], dict[str, Emulation]]

    formats: dict[str, str]
    """precheck's name of each cache format."""

    def __str__(self) -> str:
        """As it stands in the table."""
        return f"{self.script.removesuffix('.py')} {self.dtype}{' AMX' if self.amx else ''}"

    def log_probabilities(self, cache: str, *, token_ids: list[list[int]]) -> list[Likely]:
        """Of every position of all texts, from a process of its own."""
        found = answer_of(
            self.python,
            self.script,
            model=str(self.model),
            dtype=self.dtype,
            amx=self.amx,
            cache=cache,
            token_ids=token_ids,
            most=TOP,
            every_position=True,
        )
        return list(chain.from_iterable(found))


def kl_divergence(reference: Likely, run: Likely) -> float:
    """KL(reference || run) in nats of the tokens that both tell, and of the rest as one."""
    both = reference.keys() & run.keys()
    rest = [max(1 - sum(math.exp(of[t]) for t in both), 1e-12) for of in (reference, run)]
    told = sum(math.exp(reference[t]) * (reference[t] - run[t]) for t in both)
    return told + rest[0] * math.log(rest[0] / rest[1])


def mean_kl(reference: list[Likely], run: list[Likely]) -> float:
    """The mean over positions that both tell."""
    pairs = zip(reference, run, strict=True)
    return fmean(kl_divergence(*pair) for pair in pairs if all(pair))


def told_by(log_probs: list[torch.Tensor], like: list[Likely]) -> list[Likely]:
    """What an engine would tell of full log-probabilities: of the tokens that it told."""
    rows = chain.from_iterable(log_probs)
    return [{t: float(row[int(t)]) for t in told} for row, told in zip(rows, like, strict=True)]


def predicted(engine: Engine, *, model: Path) -> dict[str, float]:
    """By cache format, the KL to float32 that ``precheck scan`` measures on the same texts, nats.

    The mean of the texts' means.
    """
    report = precheck.scan(
        model,
        dtypes=[engine.dtype],
        attn_implementations=["sdpa"],
        prompts=HELD_OUT,
        quick=True,
        kv_cache_dtypes=tuple(engine.formats.values()),
    )
    names = [f"prompt_{number}" for number in range(1, len(HELD_OUT) + 1)]
    measured = {run.configuration.kv_cache_dtype: run.logits for run in report.runs if run.logits}
    return {
        cache: fmean(measured[name].kl_by_probe[each] or 0.0 for each in names)
        for cache, name in engine.formats.items()
    }


def rows(engine: Engine, *, model: Path, token_ids: list[list[int]]) -> Iterator[str]:
    """A line of the table for each cache format and each way to predict it."""
    emulate = partial(log_probabilities, str(model), dtype=engine.dtype, token_ids=token_ids)
    without = engine.log_probabilities(engine.without, token_ids=token_ids)
    plain = told_by(emulate(emulation=Emulation()), without)
    own = predicted(engine, model=model)
    for cache, name in engine.formats.items():
        try:
            with_cache = engine.log_probabilities(cache, token_ids=token_ids)
        except EngineError as error:
            yield f"{engine!s:22}{cache:10}{error}; precheck kv:{name} {own[cache]:.5f}"
            continue
        measured = mean_kl(without, with_cache)
        start = f"{engine!s:22}{cache:10}{measured:8.5f}  "
        yield f"{start}{f'precheck kv:{name}':26}{own[cache]:8.5f}{measured / own[cache]:6.2f}"
        for way, emulation in engine.emulations(cache).items():
            if way == "with AMX" and not engine.amx:
                continue
            emulated = told_by(emulate(emulation=emulation), with_cache)
            expected, apart = mean_kl(plain, emulated), mean_kl(with_cache, emulated)
            yield f"{start}{way:26}{expected:8.5f}{measured / expected:6.2f}{apart:9.5f}"


def engines(vllm: str | None, llama: str | None, *, models: Path) -> Iterator[Engine]:
    """Those whose interpreter is given, in each configuration."""
    model = models / MODEL
    has_amx = torch.cpu._is_amx_tile_supported()  # noqa: SLF001  what vLLM asks
    runs = [("float32", False), ("bfloat16", False)] + [("bfloat16", True)] * has_amx
    for dtype, amx in runs if vllm else ():
        yield Engine(
            python=vllm or "",
            script="vllm_cpu.py",
            model=model,
            dtype=dtype,
            amx=amx,
            without="auto",
            formats={cache: f"{cache}_rz" for cache in FP8},
            emulations=in_vllm,
        )
    if llama:
        yield Engine(
            python=llama,
            script="llama_cpp.py",
            model=gguf_of(models, "F32"),
            dtype="float32",
            amx=False,
            without="f16",
            formats={cache: cache for cache in ("q8_0", "q4_0")},
            emulations=in_llama_cpp,
        )


def main() -> None:
    """Reads the options and prints the table."""
    options = argparse.ArgumentParser(prog="make engine", description=__doc__)
    options.add_argument("models", type=Path, help="the folder that make real fetched")
    options.add_argument("--vllm", help="an interpreter with vllm-cpu")
    options.add_argument("--llama", help="an interpreter with xllamacpp")
    asked = options.parse_args()
    model = asked.models / MODEL
    tokenizer = AutoTokenizer.from_pretrained(model)
    token_ids = [tokenizer(text)["input_ids"] for text in HELD_OUT]
    positions = sum(map(len, token_ids)) - len(token_ids)
    print(f"{positions} positions of {len(token_ids)} texts, KL in nats")
    print(
        "engine                cache     with it  predicted                  with it ratio    apart"
    )
    for engine in engines(asked.vllm, asked.llama, models=asked.models):
        for row in rows(engine, model=model, token_ids=token_ids):
            print(row, flush=True)


if __name__ == "__main__":
    main()
