"""What ``precheck.watch`` costs a model that runs: watched over bare, in one run, turn by turn.

``make bench ARGS=live``

Builds a random Qwen2 of 1.08 B parameters in bfloat16 and times a prefill of 256 tokens and the
decoding of single tokens behind it, with and without a watch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

import precheck
from benchmarks.watching import build, cast
from precheck.measure.models.skeleton import twin

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Prints a line each for prefill and decoding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=18, help="decoder layers (18: 1.08 B)")
    parser.add_argument("--tokens", type=int, default=256, help="of the prefill")
    parser.add_argument("--steps", type=int, default=16, help="decoded tokens")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of turns; medians count")
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    base = build(options.layers)
    model: Any = base
    if options.dtype != "float32":
        model = twin(base, replace=lambda each: cast(each, options.dtype))
        del base
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size / 1e9:.2f} B parameters, {options.dtype}, {torch.get_num_threads()} threads")
    ids = torch.randint(0, model.config.vocab_size, (1, options.tokens))

    def prefill() -> None:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def decode() -> None:
        cache = model(input_ids=ids[:, :32], use_cache=True, logits_to_keep=1).past_key_values
        for step in range(options.steps):
            model(input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True)

    for name, action in (("prefill", prefill), ("decoding", decode)):
        ratios, bare = compared(model, action, repeats=options.repeats)
        print(
            f"{name}: bare {bare:.2f} s; watched / bare {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f})",
            flush=True,
        )


def compared(
    model: torch.nn.Module, action: Callable[[], None], *, repeats: int
) -> tuple[list[float], float]:
    """Ratios turn by turn, and the median of the bare seconds."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    with torch.inference_mode():
        action()
        for turn in range(repeats):
            for is_watched in (False, True) if turn % 2 else (True, False):
                started = time.perf_counter()
                with precheck.watch(model) if is_watched else nullcontext():
                    action()
                seconds[is_watched].append(time.perf_counter() - started)
    ratios = [ours / theirs for ours, theirs in zip(seconds[True], seconds[False], strict=True)]
    return ratios, statistics.median(seconds[False])


if __name__ == "__main__":
    main()
