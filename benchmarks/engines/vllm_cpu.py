"""Log-probabilities of prompts from vLLM's CPU build: ``VLLM_PYTHON vllm_cpu.py REQUEST``.

Run by the engine's own interpreter, so it imports nothing of precheck. docs/served.md says how its
environment is made.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(request: str) -> None:
    """Answers a request with the most likely tokens of every position but the first."""
    asked = json.loads(Path(request).read_text(encoding="utf-8"))
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    import torch  # noqa: PLC0415
    import vllm  # noqa: PLC0415

    if not asked["amx"]:
        torch.cpu._is_amx_tile_supported = lambda: False  # noqa: SLF001  vLLM asks only this
    engine = vllm.LLM(
        asked["model"],
        dtype=asked["dtype"],
        kv_cache_dtype=asked["cache"],
        max_model_len=512,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_logprobs=asked["most"],
    )
    answers = engine.generate(
        [{"prompt_token_ids": ids} for ids in asked["token_ids"]],
        vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=asked["most"]),
    )
    found = [
        [
            {token: said.logprob for token, said in place.items()}
            for place in answer.prompt_logprobs[1:]
        ]
        for answer in answers
    ]
    Path(asked["answer"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
