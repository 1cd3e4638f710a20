"""Seconds of bare forwards, nothing watched, over the batches that a scan ran.

``python benchmarks/bare.py MODEL BATCHES ATTENTION...``: prints JSON, by dtype and arithmetic.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from precheck.measure.watch.op_kinds import op_kind
from precheck.measure.watch.rounded_products import RoundedProducts
from precheck.measure.watch.trees import tensors_in

MANY = 4
"""Batches of which one pass is measured, after one that is not."""


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


def main(folder: str, batches: str, *attentions: str) -> None:
    """Prints the seconds of each dtype, of all attention implementations together."""
    inputs: list[dict[str, torch.Tensor]] = torch.load(batches)
    seconds: dict[str, float] = {}
    for dtype in ("float32", "bfloat16", "float16"):
        for attention in attentions:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, dtype), attn_implementation=attention
            ).eval()
            seconds[dtype] = seconds.get(dtype, 0.0) + timed(model, inputs)
            if dtype == "float16":
                with Rounded():
                    rounded = timed(model, inputs)
                seconds["float32-rounded"] = seconds.get("float32-rounded", 0.0) + rounded
            del model
            gc.collect()
    print(json.dumps(seconds))


def timed(model: Any, inputs: list[dict[str, torch.Tensor]]) -> float:
    """Median seconds of a forward over every batch; of many batches one is enough."""
    found = []
    with torch.no_grad():
        for _ in range(4 if len(inputs) < MANY else 2):
            start = time.perf_counter()
            for each in inputs:
                model(**each, use_cache=False)
            found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main(*sys.argv[1:])
