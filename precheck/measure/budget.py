"""How much memory a scan may take, and what it takes beside weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

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
_FLOAT64 = 8


def activation_bytes(batches: Sequence[Batch], skeletons: Sequence[Skeleton]) -> int:
    """About what hidden states, the insides of one unit and logits take, from widths alone.

    Every run waits with its hidden states and copies of what its unit was given; one run at a
    time is inside a unit; one batch at a time has logits: its reference's, another's, and a
    chunk in float64. Products in float32 take a copy of their weights.
    """
    model = skeletons[0].model
    linear = [each for each in model.modules() if isinstance(each, nn.Linear)]
    widths = [each.in_features for each in linear] or [1]
    hidden = min(max(widths), setting(text_config(model), "hidden_size") or max(widths))
    inside = max([each.out_features for each in linear[:-1]] or [1])
    head = linear[-1].out_features if linear else 1
    tokens = sum(each.num_positions for each in batches)
    largest = max(each.num_positions for each in batches)
    waiting = 4 * tokens * hidden * sum(each.dtype.limits.num_bytes for each in skeletons)
    inside_one = largest * (8 * inside * _FLOAT32 + 5 * head * _FLOAT32)
    is_native = all(each.arithmetic is Arithmetic.NATIVE for each in skeletons)
    widened = 0 if is_native else max([each.weight.numel() for each in linear[:-1]] or [0])
    return waiting + inside_one + widened * _FLOAT32 + _OVERHEAD
