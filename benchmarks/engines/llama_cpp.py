"""Log-probabilities of prompts from llama.cpp: ``LLAMA_PYTHON llama_cpp.py REQUEST``.

Run by an interpreter with llama-cpp-python (0.3.36 was tried), which pip compiles. The weights are
written out in float32 first, so that the cache is all that is quantised.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this file has the name of what it imports

import llama_cpp
import numpy as np

TOP = 50


def in_float32(gguf: Path, folder: Path) -> str:
    """A copy with float32 weights."""
    decoded = folder / "float32.gguf"
    asked = llama_cpp.llama_model_quantize_default_params()
    asked.ftype, asked.allow_requantize = llama_cpp.LLAMA_FTYPE_ALL_F32, True
    llama_cpp.llama_model_quantize(str(gguf).encode(), str(decoded).encode(), asked)
    return str(decoded)


def most_likely(scores: np.ndarray[Any, Any]) -> dict[int, float]:
    """Log-probabilities of the most likely tokens of one position."""
    scores = scores.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    return {int(token): float(scores[token]) for token in scores.argsort()[-TOP:]}


def main(request: str) -> None:
    """Answers a request with the most likely tokens that every position but the last predicts."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    answer = Path(asked["answer"])
    cache = getattr(llama_cpp, f"GGML_TYPE_{asked['cache'].upper()}")
    engine = llama_cpp.Llama(
        in_float32(Path(asked["model"]), answer.parent),
        n_ctx=512,
        logits_all=True,
        flash_attn=True,  # values are quantised only with it
        type_k=cache,
        type_v=cache,
    )
    found = []
    for ids in asked["token_ids"]:
        engine.reset()
        engine.eval(ids)
        found.append([most_likely(row) for row in engine.scores[: len(ids) - 1]])
    answer.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
