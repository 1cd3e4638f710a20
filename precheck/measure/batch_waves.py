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

_STREAMED_SIZE = 4


def in_waves(
    batches: Sequence[Batch], indices: Iterable[int], *, is_streamed: bool = False
) -> list[list[int]]:
    """Indices of batches that run at once: few enough for the hidden states of all runs.

    Args:
        batches: all of the scan.
        indices: those to run, in order.
        is_streamed: every wave reads all weights on the Hub: four times as much runs at once, and
            no batch alone.
    """
    size = _STREAMED_SIZE if is_streamed else 1
    waves: list[list[int]] = []
    num_tokens = 0
    for index in indices:
        num_positions = batches[index].num_positions
        num_tokens += num_positions
        before = waves[-1] if waves else []
        is_full = num_tokens > size * WAVE_TOKENS or len(before) == size * WAVE_BATCHES
        is_alone = not is_streamed and any(
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
