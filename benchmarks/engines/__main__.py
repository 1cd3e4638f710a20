"""An engine with a quantised cache against itself without, and what was predicted: make engine.

An engine tells its 50 most likely tokens of every position; what it leaves out counts as one. The
table has KL(without, with the format) of the engine and of each emulation, their ratio, and how far
apart the two are with the format: KL(engine, emulation).
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from benchmarks.engines.emulation import (
    FP8,
    Emulation,
    in_llama_cpp,
    in_vllm,
    log_probabilities,
)
from precheck.measure.probes.builtin import HELD_OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODEL = "smollm2-135m"
Likely = dict[str, float]
"""Log-probabilities of one position by token id."""


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
    caches: tuple[str, ...]
    emulations: Callable[[str], dict[str, Emulation]]

    def log_probabilities(self, cache: str, *, token_ids: list[list[int]]) -> list[Likely]:
        """Of every position of all texts, from a process of its own."""
        with TemporaryDirectory() as folder:
            request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
            asked = {"model": str(self.model), "dtype": self.dtype, "amx": self.amx, "cache": cache}
            asked |= {"token_ids": token_ids, "answer": str(answer)}
            request.write_text(json.dumps(asked), encoding="utf-8")
            command = [self.python, Path(__file__).with_name(self.script), request]
            ran = subprocess.run(command, capture_output=True, check=False, text=True)  # noqa: S603
            if ran.returncode:
                sys.exit(f"the engine failed:\n{ran.stderr[-2000:]}")
            return list(chain.from_iterable(json.loads(answer.read_text(encoding="utf-8"))))


def kl_divergence(reference: Likely, run: Likely) -> float:
    """KL(reference || run) in nats of the tokens that both tell, and of the rest as one."""
    both = reference.keys() & run.keys()
    rest = [max(1 - sum(math.exp(of[t]) for t in both), 1e-12) for of in (reference, run)]
    told = sum(math.exp(reference[t]) * (reference[t] - run[t]) for t in both)
    return told + rest[0] * math.log(rest[0] / rest[1])


def mean_kl(reference: list[Likely], run: list[Likely]) -> float:
    """The mean over positions."""
    return fmean(kl_divergence(a, b) for a, b in zip(reference, run, strict=True))


def told_by(log_probs: list[torch.Tensor], like: list[Likely]) -> list[Likely]:
    """What an engine would tell of full log-probabilities: of the tokens that it told."""
    rows = chain.from_iterable(log_probs)
    return [{t: float(row[int(t)]) for t in told} for row, told in zip(rows, like, strict=True)]


def predicted(report: Path) -> dict[tuple[str, str], float]:
    """By dtype and cache format, the KL to float32 that ``precheck scan`` measured, in nats."""
    runs = json.loads(report.read_text(encoding="utf-8"))["runs"]
    return {
        (run["dtype"], run["kv_cache_dtype"]): run["logits"]["kl_divergence_mean"]
        for run in runs
        if run.get("kv_cache_dtype") and run["logits"]
    }


def rows(engine: Engine, *, model: Path, token_ids: list[list[int]]) -> Iterator[str]:
    """A line of the table for each cache format and each way to emulate it."""
    emulate = partial(log_probabilities, str(model), dtype=engine.dtype, token_ids=token_ids)
    without = engine.log_probabilities(engine.without, token_ids=token_ids)
    plain = told_by(emulate(emulation=Emulation()), without)
    for cache in engine.caches:
        with_cache = engine.log_probabilities(cache, token_ids=token_ids)
        measured = mean_kl(without, with_cache)
        for name, emulation in engine.emulations(cache).items():
            if name == "with AMX" and not engine.amx:
                continue
            emulated = told_by(emulate(emulation=emulation), with_cache)
            expected, apart = mean_kl(plain, emulated), mean_kl(with_cache, emulated)
            run = (
                f"{engine.script.removesuffix('.py')} {engine.dtype}{' AMX' if engine.amx else ''}"
            )
            yield (
                f"{run:22}{cache:10}{measured:8.5f}  {name:12}{expected:8.5f}"
                f"{measured / expected:6.2f}{apart:9.5f}"
            )


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
            caches=tuple(FP8),
            emulations=in_vllm,
        )
    if llama:
        yield Engine(
            python=llama,
            script="llama_cpp.py",
            model=next(models.rglob("SmolLM2-135M*.gguf")),
            dtype="float32",
            amx=False,
            without="f16",
            caches=("q8_0", "q4_0"),
            emulations=in_llama_cpp,
        )


def main() -> None:
    """Reads the options and prints the table."""
    options = argparse.ArgumentParser(prog="make engine", description=__doc__)
    options.add_argument("models", type=Path, help="the folder that make real fetched")
    options.add_argument("--vllm", help="an interpreter with vllm-cpu")
    options.add_argument("--llama", help="an interpreter with llama-cpp-python")
    options.add_argument("--report", type=Path, help="of precheck scan --kv-cache-dtype")
    asked = options.parse_args()
    model = asked.models / MODEL
    tokenizer = AutoTokenizer.from_pretrained(model)
    token_ids = [tokenizer(text)["input_ids"] for text in HELD_OUT]
    positions = sum(map(len, token_ids)) - len(token_ids)
    print(f"{positions} positions of {len(token_ids)} texts, KL in nats")
    print("engine                cache     with it  emulated        with it ratio    apart")
    for engine in engines(asked.vllm, asked.llama, models=asked.models):
        for row in rows(engine, model=model, token_ids=token_ids):
            print(row, flush=True)
    for (dtype, cache), divergence in predicted(asked.report).items() if asked.report else ():
        print(f"precheck {dtype:10}{cache:10}{divergence:8.5f}  against float32, its own probes")


if __name__ == "__main__":
    main()
