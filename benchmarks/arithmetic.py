"""Products in float32, rounded, against the processor's own 16-bit products.

``make bench ARGS=arithmetic``

A random Qwen2 of the widths of Qwen2-1.5B and four layers, 256 tokens, watched in lockstep with its
float32 reference, each 16-bit dtype both ways in turn. Beside the times: how many elements of the
logits are the same, and how far both are from a float64 oracle.
"""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.watching import build, cast, random_probes, timed
from precheck.measure.models.skeleton import twin
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.rounded_products import RoundedProducts

if TYPE_CHECKING:
    from precheck.measure.probes.batch import Batch


def main() -> None:
    """A line for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    base = build(options.layers)
    batch = random_probes(5, base.config.vocab_size)  # 240 tokens
    for name in ("float16", "bfloat16"):
        model = twin(base, replace=lambda each, name=name: cast(each, name))
        exact = twin(model, replace=lambda each: cast(each, "float64"))
        rounded = RoundedProducts(getattr(torch, name))
        ways: dict[str, RoundedProducts | None] = {"native": None, "rounded": rounded}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        logits: dict[str, torch.Tensor] = {}
        for turn in range(options.repeats + 1):
            for way in list(ways)[:: 1 if turn % 2 else -1]:
                found, took = run(model, batch, ways[way])
                logits[way] = found
                if turn:  # the first warms up
                    seconds[way].append(took)
        report(name, seconds, logits, run(exact, batch, None)[0])
        del exact


def run(model: Any, batch: Batch, products: RoundedProducts | None) -> tuple[torch.Tensor, float]:
    """Logits of a watched forward, and its seconds."""
    stack = ModuleStack(model)
    watcher = OpWatcher(
        stack=stack,
        parameters=Parameters(),
        real_tokens=batch.real_tokens,
        check=lambda: None,
        products=products,
    )
    found: list[torch.Tensor] = []

    def forward() -> None:
        with torch.no_grad(), watcher:
            found.append(model(batch.input_ids, use_cache=False).logits)
        watcher.end()

    try:
        took, _ = timed(forward)
    finally:
        stack.detach()
    return found[0], took


def report(
    name: str,
    seconds: dict[str, list[float]],
    logits: dict[str, torch.Tensor],
    exact: torch.Tensor,
) -> None:
    """Times, their ratio within a turn, and how far the numbers are apart."""
    pairs = zip(seconds["native"], seconds["rounded"], strict=True)
    ratios = [native / rounded for native, rounded in pairs]
    same = (logits["native"] == logits["rounded"]).double().mean()
    print(
        f"{name}: native {statistics.median(seconds['native']):.2f} s, rounded "
        f"{statistics.median(seconds['rounded']):.2f} s; native / rounded "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    for way, found in logits.items():
        error = (found.double() - exact).norm(dim=-1) / exact.norm(dim=-1)
        print(f"  {way}: relative error of the logits against float64 {float(error.mean()):.2e}")
    print(f"  {float(same):.1%} of the logits are the same")


if __name__ == "__main__":
    main()
