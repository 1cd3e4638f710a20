"""Bare forwards: weights in memory, nothing watched, nothing compared.

Prints a JSON object: for each dtype, the seconds of one forward (the median of three, after one to
warm up). ``float16`` is measured as the processor does it, and ``float32-rounded`` as a scan does
where the processor has no float16 arithmetic: what a bare forward costs in the same arithmetic.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from precheck.measure.watch.op_kinds import op_kind
from precheck.measure.watch.rounded_products import RoundedProducts
from precheck.measure.watch.trees import tensors_in


class Rounded(TorchDispatchMode):
    """Products in float32, rounded; nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self._products = RoundedProducts(torch.float16)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = list(tensors_in(args))
        if tensors and self._products.applies_to(op_kind(func).name, tensors):
            return self._products.compute(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def main(folder: str, prompts: str, attention: str) -> None:
    """Prints the seconds of each dtype."""
    lines = Path(prompts).read_text(encoding="utf-8").splitlines()
    token_ids = torch.tensor([json.loads(line)["token_ids"] for line in lines])
    seconds: dict[str, float] = {}
    for dtype in ("float32", "bfloat16", "float16"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention
        ).eval()
        seconds[dtype] = timed(model, token_ids)
        if dtype == "float16":
            with Rounded():
                seconds["float32-rounded"] = timed(model, token_ids)
        del model
        gc.collect()
    print(json.dumps(seconds))


def timed(model: Any, token_ids: torch.Tensor) -> float:
    """Median seconds of a forward."""
    found = []
    with torch.no_grad():
        for _ in range(4):
            start = time.perf_counter()
            model(token_ids, use_cache=False)
            found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
