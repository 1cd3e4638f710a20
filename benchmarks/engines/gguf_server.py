"""Log-probabilities of GGUF files from llama.cpp's server: ``PYTHON gguf_server.py REQUEST``.

Run by an interpreter with xllamacpp (2026.10.11549 was tried), a wheel that brings llama.cpp and
starts its server on loopback.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import xllamacpp

CONTEXT = 256


def next_token(file: str, prompts: list[list[int]], *, most: int) -> list[dict[int, float]]:
    """By prompt, the log-probability of every token that may come next, by token id."""
    asked = xllamacpp.CommonParams()
    asked.model.path = file
    asked.n_ctx, asked.n_parallel, asked.warmup = CONTEXT, 1, False
    asked.n_gpu_layers = 0
    asked.cpuparams.n_threads = asked.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(asked)
    found = []
    for prompt in prompts:
        answer = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": 1,
                "n_probs": most,
                "temperature": 0,
                "cache_prompt": False,
            }
        )
        scores = answer["choices"][0]["logprobs"]
        if scores is None:  # the answer is empty: an end token came first
            found.append({})
            continue
        (step,) = scores["content"]
        found.append({each["id"]: each["logprob"] for each in step["top_logprobs"]})
    return found


def main(request: str) -> None:
    """Answers a request."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    found = {
        file: next_token(file, asked["token_ids"], most=asked["most"]) for file in asked["files"]
    }
    Path(asked["answer"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
