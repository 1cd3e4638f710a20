"""Which batches run together."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        if not waves or num_tokens > WAVE_TOKENS or len(waves[-1]) == WAVE_BATCHES:
            waves.append([])
            num_tokens = num_positions
        waves[-1].append(index)
    return waves
