"""What watching costs: watched over bare forward passes, in one run, beside each other.

``python -m benchmarks.watching`` builds a random Qwen2 of 1.5 B parameters (the shape of
Qwen2-1.5B) and times, in turn, the bare forwards of its configurations and the same forwards
watched in lockstep: every operation reduced, every decoder layer compared with the reference.
The comparison of the logits (KL in float64) is timed apart: it is work of its own, once a scan.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING
from unittest import mock

import torch
import transformers

from precheck.checkpoint.architecture import find_architecture
from precheck.probe.batches import Batch
from precheck.probe.classify import Classifier
from precheck.probe.lockstep import Worker, advance
from precheck.probe.run_totals import RunTotals
from precheck.probe.run_watch import RunWatch
from precheck.probe.skeleton import Skeleton, twin
from precheck.records.precision import Dtype
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Prints a line for each configuration, and the ratio of all together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=28, help="decoder layers (28: 1.5 B)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of the one probe")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of passes; medians count")
    parser.add_argument("--attn", default="sdpa,eager", help="attention implementations")
    parser.add_argument("--dtype", default="float32,bfloat16", help="float32 and others")
    options = parser.parse_args()
    base = build(options.layers)
    size = sum(parameter.numel() for parameter in base.parameters())
    batch = one_probe(options.tokens, base.config.vocab_size)
    print(
        f"{size / 1e9:.2f} B parameters, {options.tokens} tokens, {torch.get_num_threads()} threads"
    )
    half = {
        Dtype(name): twin(base, replace=lambda each, name=name: cast(each, name))
        for name in options.dtype.split(",")
        if name != Dtype.FLOAT32
    }
    for attn in options.attn.split(","):
        models = {Dtype.FLOAT32: base, **half}
        for model in models.values():
            model.set_attn_implementation(attn)
        report(attn, models, batch, repeats=options.repeats)


def report(attn: str, models: dict[Dtype, torch.nn.Module], batch: Batch, *, repeats: int) -> None:
    """One line: bare, watched, and watched with the logits compared."""
    skeletons = [
        Skeleton(
            model=model, dtype=dtype, attn_implementation=attn, requested_attn_implementation=attn
        )
        for dtype, model in models.items()
    ]

    def bare() -> None:
        with torch.no_grad():
            for skeleton in skeletons:
                skeleton.forward(batch)

    def watched() -> None:
        # a plain function: a mock would keep the logits it is called with
        with mock.patch.object(RunWatch, "_add_logits", _nothing):
            lockstep(skeletons, batch)

    def compared() -> None:
        lockstep(skeletons, batch)

    actions = {"bare": bare, "watched": watched, "compared": compared}
    bare()
    watched()
    wall: dict[str, list[float]] = {name: [] for name in actions}
    processor: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeats):
        # every other turn backwards: what runs first finds other memory than what runs last
        for name in list(actions)[:: 1 if turn % 2 else -1]:
            seconds, processor_seconds = timed(actions[name])
            wall[name].append(seconds)
            processor[name].append(processor_seconds)
    print(
        f"{attn:6} {' + '.join(models)}: bare {statistics.median(wall['bare']):.2f} s; "
        f"watched / bare {ratio(wall, 'watched')}, of processor time "
        f"{ratio(processor, 'watched')}; with the logits compared {ratio(wall, 'compared')}",
        flush=True,
    )


def _nothing(*_: object) -> None:
    """Stands in for the comparison of the logits."""


def ratio(times: dict[str, list[float]], name: str) -> str:
    """Median and range of the ratios to the bare pass of the same turn."""
    ratios = [ours / theirs for ours, theirs in zip(times[name], times["bare"], strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def lockstep(skeletons: list[Skeleton], batch: Batch) -> None:
    """One batch through all configurations, as a scan does it."""
    layout = find_architecture(skeletons[0].model)
    classifier = Classifier()
    workers: list[Worker] = []
    watches: list[RunWatch] = []
    for skeleton in skeletons:
        worker = Worker(name=skeleton.dtype, model=skeleton.model, units=layout.units)
        reference = watches[0] if watches else None
        worker.passenger = RunWatch(
            totals=RunTotals(skeleton),
            batch=batch,
            layout=layout,
            reference=reference,
            baseline=reference,
            classifier=classifier,
            decode=lambda _: None,
            check=worker.turns.check,
        )
        watches.append(worker.passenger)
        workers.append(worker)
    try:
        advance(workers, lambda _: None)
    finally:
        for watch in watches:
            watch.detach()
    for worker in workers:
        if worker.error is not None:
            raise worker.error


def build(num_layers: int) -> transformers.Qwen2ForCausalLM:
    """A random float32 Qwen2 of the shape of Qwen2-1.5B."""
    config = transformers.Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=num_layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=32_768,
    )
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(config).eval()


def cast(parameter: torch.Tensor, dtype: str) -> torch.nn.Parameter:
    """A copy of a parameter in another dtype."""
    return torch.nn.Parameter(parameter.detach().to(getattr(torch, dtype)), requires_grad=False)


def one_probe(num_tokens: int, vocab_size: int) -> Batch:
    """A batch of one row of random token ids."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        probes=(Probe(name="random", kind="token_ids", num_tokens=num_tokens),),
        input_ids=torch.randint(vocab_size, (1, num_tokens), generator=generator),
    )


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of processor time of all threads, that it takes."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
