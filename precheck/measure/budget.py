"""How much memory a scan may take, and what it takes besides weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from precheck.measure.machine.memory import free_bytes, used_bytes
from precheck.measure.models.settings import setting, text_config
from precheck.records.precision import Arithmetic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch

FREE_SHARE = 0.8
"""Of the free memory that a scan takes by itself: the page cache and others need some."""

_OVERHEAD = 256 << 20
"""Modules of every run over every batch, scratch of matrix libraries, memory that the C library
keeps: measured on scans of 1.5 B and 7 B in six runs."""

_FLOAT32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Bytes of a device."""

    limit: int
    """What the scan may take."""
    used: int
    """What is taken already or will be, weights apart."""


def memory_budget(
    device: str,
    *,
    max_memory: int | None,
    batches: Sequence[Batch],
    skeletons: Sequence[Skeleton],
) -> MemoryBudget:
    """What a scan may take, and what of it is not left for weights.

    Args:
        device: where the runs compute.
        max_memory: the user's limit; None takes most of what is free.
        batches: those that run together.
        skeletons: every run.
    """
    used = used_bytes(device)
    limit = max_memory or used + int(FREE_SHARE * free_bytes(device))
    return MemoryBudget(limit=limit, used=used + activation_bytes(batches, skeletons))


def activation_bytes(batches: Sequence[Batch], skeletons: Sequence[Skeleton]) -> int:
    """About what hidden states, the insides of one unit and logits take, from widths alone.

    Every run waits with its hidden states and with copies of what its unit was given. One run at a
    time is inside a unit. One batch at a time has logits: its reference's, another run's, and a
    chunk of them in float64. Products in float32 take a copy of their weights.
    """
    model = skeletons[0].model
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    head = linears[-1].out_features if linears else 1
    in_layers = linears[:-1]
    widths = [linear.in_features for linear in linears] or [1]
    hidden = min(max(widths), setting(text_config(model), "hidden_size") or max(widths))
    inside = max((linear.out_features for linear in in_layers), default=1)
    num_tokens = sum(batch.num_positions for batch in batches)
    largest = max(batch.num_positions for batch in batches)
    waiting = 4 * num_tokens * hidden * sum(run.dtype.limits.num_bytes for run in skeletons)
    inside_one = largest * (8 * inside * _FLOAT32 + 5 * head * _FLOAT32)
    is_native = all(run.arithmetic is Arithmetic.NATIVE for run in skeletons)
    weights = (linear.weight.numel() for linear in in_layers)
    widened = 0 if is_native else max(weights, default=0)
    return waiting + inside_one + widened * _FLOAT32 + _OVERHEAD
