"""Log-probabilities from llama.cpp's server: ``LLAMA_PYTHON llama_cpp.py REQUEST``.

Run by an interpreter with xllamacpp (2026.10.11549 was tried), a wheel that brings llama.cpp and
starts its server on loopback. The server tells nothing of prompts, so each position is asked for as
the token that follows what stands before it; what it has in its cache it does not compute again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import xllamacpp


def server_of(model: str, *, cache: str) -> Any:
    """A server of one GGUF file, with one thread."""
    asked = xllamacpp.CommonParams()
    asked.model.path = model
    asked.n_ctx, asked.n_parallel, asked.warmup = 512, 1, False
    asked.n_gpu_layers = 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    stored = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache.upper()}")
    asked.cache_type_k = asked.cache_type_v = stored
    kinds = xllamacpp.llama_flash_attn_type
    asked.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED  # values are quantised only with it
    return xllamacpp.Server(asked)


def next_token(server: Any, prompt: list[int], *, most: int) -> dict[int, float]:
    """Log-probabilities of the tokens that are likeliest to come next, by token id."""
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": most, "temperature": 0}
    scores = server.handle_completions(asked)["choices"][0]["logprobs"]
    if scores is None:  # the answer is empty: an end token came first
        return {}
    (step,) = scores["content"]
    return {each["id"]: each["logprob"] for each in step["top_logprobs"]}


def main(request: str) -> None:
    """Answers a request: of every text one position, the last, or all but it."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    server = server_of(asked["model"], cache=asked["cache"])
    found = [
        [
            next_token(server, ids[:end], most=asked["most"])
            for end in (range(1, len(ids)) if asked["every_position"] else [len(ids)])
        ]
        for ids in asked["token_ids"]
    ]
    Path(asked["answer"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
