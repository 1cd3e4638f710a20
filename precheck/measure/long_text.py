"""Texts too long for one forward: in parts, as large as fit into memory."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.measure.lockstep.continuing import is_broken
from precheck.measure.memory_budget import activation_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import Cache

    from precheck.measure.lockstep.figures.run_totals import RunTotals
    from precheck.measure.lockstep.wave_run import WaveRun
    from precheck.measure.models.configurations import RunGroup
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.prepared import Prepared
    from precheck.measure.probes.batch import Batch

MOST_MEMORY = 0.5
"""Share of the memory that a scan may take: what a forward holds at most, the rest is for weights.
"""

SMALLEST_PART = 128
"""Tokens: weights are read again for every part."""


def part_tokens(prepared: Prepared, batch: Batch, *, available: int) -> int | None:
    """Tokens of a part that fits into memory; None where the whole text does, or nothing helps.

    Args:
        prepared: the models.
        batch: the text.
        available: bytes for activations and weights.
    """
    num_tokens = batch.input_ids.shape[1]
    limit = int(MOST_MEMORY * available)
    if activation_bytes([batch], prepared.skeletons) <= limit:
        return None
    limit -= cache_bytes(prepared, num_tokens)
    part = SMALLEST_PART
    while part * 2 < num_tokens:
        if activation_bytes([batch.columns(slice(-part * 2, None))], prepared.skeletons) > limit:
            break
        part *= 2
    return part if part < num_tokens else None


def cache_bytes(prepared: Prepared, num_tokens: int) -> int:
    """Bytes of the keys and values of all runs after so many tokens."""
    cache = prepared.facts.cache
    elements = 0 if cache is None else cache.keys_and_values(num_tokens)
    return elements * sum(run.dtype.limits.num_bytes for run in prepared.skeletons)


def run_in_parts(
    new_run: Callable[..., WaveRun],
    groups: Sequence[RunGroup],
    parts: Iterator[Batch],
) -> Iterator[list[RunTotals]]:
    """Runs a text part by part; yields what every run found so far, in the order of the groups.

    A run whose keys or values are no longer finite ends there: whatever it computes after them is
    broken too. Where a float32 run does, all that are compared with it end.

    Args:
        new_run: makes the lockstep of all runs over some batches.
        groups: the runs.
        parts: of one text, in order.
    """
    skeletons = [skeleton for group in groups for skeleton in group.skeletons]
    totals: dict[Skeleton, RunTotals] = {}
    caches: dict[Skeleton, Cache] = {skeleton: skeleton.empty_cache() for skeleton in skeletons}
    for part in parts:
        wave = new_run([part], groups=groups, caches=caches)
        running = [skeleton for group in groups for skeleton in group.skeletons]
        try:
            wave.go()
        finally:
            for skeleton, found in zip(running, wave.totals[0], strict=True):
                before = totals.get(skeleton)
                totals[skeleton] = found if before is None else before.merge(found)
            yield [totals[skeleton] for skeleton in skeletons]
        over = {run for run in running if totals[run].failure or is_broken(caches[run])}
        groups = [
            replace(group, others=[run for run in group.others if run not in over])
            for group in groups
            if group.reference not in over
        ]
        if not groups:
            return
