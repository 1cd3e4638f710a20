"""Batches that run together: in order, each once, and not too many."""

from __future__ import annotations

import pytest
import torch

from precheck.measure.batch_waves import WAVE_BATCHES, WAVE_TOKENS, in_waves
from precheck.measure.probes.batch import Batch
from precheck.records.traces import Probe


def batches(*sizes: int) -> list[Batch]:
    return [Batch(probes=(), input_ids=torch.zeros(1, size, dtype=torch.long)) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [[0]]),
        ([1000, 1000, 48], [[0, 1, 2]]),
        ([1000, 1000, 49], [[0, 1], [2]]),
        ([WAVE_TOKENS + 1, 1, 1], [[0], [1, 2]]),
        ([1, WAVE_TOKENS, 1], [[0], [1], [2]]),
        ([1] * (WAVE_BATCHES + 1), [list(range(WAVE_BATCHES)), [WAVE_BATCHES]]),
    ],
)
def test_a_wave_is_as_large_as_its_limits_allow(
    sizes: list[int], expected: list[list[int]]
) -> None:
    assert in_waves(batches(*sizes), range(len(sizes))) == expected


def test_only_the_batches_asked_for_run() -> None:
    assert in_waves(batches(2000, 40, 2000, 8), [1, 3]) == [[1, 3]]


def test_the_text_near_the_context_runs_alone() -> None:
    far = Batch(
        probes=(Probe(name="context", kind="text", num_tokens=9),),
        input_ids=torch.zeros(1, 9, dtype=torch.long),
    )
    assert in_waves([*batches(8, 8), far, *batches(8, 8)], range(5)) == [[0, 1], [2], [3, 4]]
