"""Which batches run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.measure.probes.context import CONTEXT_PROBES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precheck.measure.probes.batch import Batch

WAVE_TOKENS = 2048
"""Tokens of batches that run together: every run holds the hidden states of all of them."""

WAVE_BATCHES = 16
"""Every run over every batch has a thread and modules of its own."""


def in_waves(batches: Sequence[Batch], indices: Iterable[int]) -> list[list[int]]:
    """Indices of batches that run at once: few enough for the hidden states of all runs.

    Args:
        batches: all of the scan.
        indices: those to run, in order.
    """
    waves: list[list[int]] = []
    num_tokens = 0
    for index in indices:
        num_positions = batches[index].num_positions
        num_tokens += num_positions
        before = waves[-1] if waves else []
        is_full = num_tokens > WAVE_TOKENS or len(before) == WAVE_BATCHES
        is_alone = any(
            batches[each].is_by_position or is_near_context(batches[each])
            for each in (*before[-1:], index)
        )
        if not before or is_full or is_alone:
            waves.append([])
            num_tokens = num_positions
        waves[-1].append(index)
    return waves


def is_near_context(batch: Batch) -> bool:
    """Whether it is the long text that a scan can do without; it runs alone."""
    return any(probe.name in CONTEXT_PROBES for probe in batch.probes)
