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
"""Share of the free memory that a scan takes when the user sets no limit; the rest is for the page
cache and other processes."""

_OVERHEAD = 256 << 20
"""Modules of every run over every batch, scratch of matrix libraries, memory that the C library
keeps: measured on scans of 1.5 B and 7 B in six runs."""

_FLOAT32_BYTES = 4

_KEPT_HIDDEN_STATES = 4
"""Every run keeps its own, and copies of what its unit was given."""

_TENSORS_IN_A_UNIT = 8
"""As wide as its widest output, in float32."""

_SCORES = 4
"""Of eager attention in float32: raw, masked, and as probabilities."""

_LOGITS = 5
"""In float32: the reference's, a run's, and a chunk of them in float64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """Bytes of a device."""

    limit: int
    """What the scan may take."""
    used: int
    """Of it, what is in use already or will be for activations: not left for weights."""


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
        batches: one wave, which runs together.
        skeletons: every run.
    """
    used = used_bytes(device)
    limit = max_memory or used + int(FREE_SHARE * free_bytes(device))
    return MemoryBudget(limit=limit, used=used + activation_bytes(batches, skeletons))


def activation_bytes(batches: Sequence[Batch], skeletons: Sequence[Skeleton]) -> int:
    """A rough estimate, from layer widths alone, of everything except the weights.

    All runs wait for each other with hidden states; one run at a time is inside a unit, and one
    batch at a time has logits. Products in float32 take a copy of their weights.
    """
    model = skeletons[0].model
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    head = linears[-1].out_features if linears else 1
    in_layers = linears[:-1]
    # the last linear of a model is its head
    widths = [linear.in_features for linear in linears] or [1]
    hidden = min(max(widths), setting(text_config(model), "hidden_size") or max(widths))
    widest_output = max((linear.out_features for linear in in_layers), default=1)
    num_tokens = sum(batch.num_positions for batch in batches)
    largest = max(batch.num_positions for batch in batches)
    run_bytes = sum(run.dtype.limits.num_bytes for run in skeletons)
    hidden_state_bytes = _KEPT_HIDDEN_STATES * num_tokens * hidden * run_bytes
    elements_in_unit = largest * (_TENSORS_IN_A_UNIT * widest_output + _LOGITS * head)
    if any(run.attn_implementation == "eager" for run in skeletons):
        num_heads = setting(text_config(model), "num_attention_heads") or 1
        num_keys = max(batch.first_position + batch.input_ids.shape[1] for batch in batches)
        elements_in_unit += _SCORES * num_heads * largest * num_keys
    is_native = all(run.arithmetic is Arithmetic.NATIVE for run in skeletons)
    weights = (linear.weight.numel() for linear in in_layers)
    elements_in_float32 = 0 if is_native else max(weights, default=0)
    in_float32 = _FLOAT32_BYTES * (elements_in_unit + elements_in_float32)
    return hidden_state_bytes + in_float32 + _OVERHEAD
