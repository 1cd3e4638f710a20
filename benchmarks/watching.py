"""What watching costs: watched over bare forward passes, in one run, beside each other.

``make bench ARGS=watching``

Builds a random Qwen2 of 1.08 B parameters (18 layers of the width of Qwen2-1.5B) and times, in
turn, the bare forwards of its configurations over the scan's largest batch and the same forwards
watched in lockstep: every operation reduced, every decoder layer compared. The comparison of the
logits (KL in float64) is timed apart: it is work of its own, once a scan.
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
from precheck.measure.blame.mechanisms import Classifier
from precheck.measure.lockstep.context import PassageContext
from precheck.measure.lockstep.figures.comparison import Comparison
from precheck.measure.lockstep.passage import Passage
from precheck.measure.lockstep.turns import Worker, advance
from precheck.measure.models.presence import ResidentPresence
from precheck.measure.models.skeleton import Skeleton, twin
from precheck.measure.probes.batch import Batch
from precheck.measure.probes.builtin import ROW_TOKENS
from precheck.measure.watch.parameters import Parameters
from precheck.records.answers import Embedding
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Prints a line for each configuration, and the ratio of all together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=18, help="decoder layers (18: 1.08 B)")
    parser.add_argument("--rows", type=int, default=16, help="probes of 48 tokens, as in a scan")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of passes; medians count")
    parser.add_argument("--attn", default="sdpa", help="attention implementations")
    parser.add_argument("--dtype", default="float32,bfloat16", help="float32 and others")
    options = parser.parse_args()
    base = build(options.layers)
    size = sum(parameter.numel() for parameter in base.parameters())
    batch = random_probes(options.rows, base.config.vocab_size)
    threads = torch.get_num_threads()
    print(f"{size / 1e9:.2f} B parameters, {batch.num_real_tokens} tokens, {threads} threads")
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
            model=model,
            configuration=Configuration(dtype=dtype, attn_implementation=attn),
            requested_attn_implementation=attn,
            parameters=Parameters.of(model),
        )
        for dtype, model in models.items()
    ]

    def bare() -> None:
        with torch.no_grad():
            for skeleton in skeletons:
                skeleton.forward(batch)

    def watched() -> None:
        # a plain function: a mock would keep the logits it is called with
        with mock.patch.object(Comparison, "add_logits", _nothing):
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
    context = PassageContext(
        layout=find_architecture(skeletons[0].model),
        classifier=Classifier(),
        decode=lambda _: None,
        keeps_entries=False,
        generates=True,
        embedding=Embedding(),
        witness=None,
    )
    passages: list[Passage] = []
    for skeleton in skeletons:
        reference = passages[0] if passages else None
        passages.append(
            Passage(
                skeleton=skeleton,
                batch=batch,
                context=context,
                reference=reference,
                baseline=reference,
                products=None,
                presence=ResidentPresence(),
            )
        )
    workers = [passage.worker for passage in passages]
    try:
        advance(workers, InOrder())
    finally:
        for passage in passages:
            passage.detach()
    for worker in workers:
        if worker.error is not None:
            raise worker.error


class InOrder:
    """A schedule: every run in the order given."""

    def order(self, waiting: list[Worker]) -> list[Worker]:
        """The workers as they are."""
        return waiting

    def before(self, _worker: Worker) -> None:
        """Nothing to do."""

    def after(self, _worker: Worker) -> None:
        """Nothing to do."""


def build(num_layers: int) -> transformers.Qwen2ForCausalLM:
    """A random float32 Qwen2 with the widths of Qwen2-1.5B, which has 28 layers."""
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


def random_probes(num_rows: int, vocab_size: int) -> Batch:
    """The scan's largest batch, of random token ids: rows of one length, no padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocab_size, (num_rows, ROW_TOKENS), generator=generator)
    probe = Probe(name="random", kind="token_ids", num_tokens=ROW_TOKENS)
    return Batch(probes=(probe,) * num_rows, input_ids=ids)


def timed(action: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and seconds of processor time of all threads, that it takes."""
    wall, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
