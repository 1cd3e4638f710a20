"""A text in parts: each forward goes on with the keys and values of those before it.

What attention and the head hold grows with the tokens of a forward, and the scores of eager
attention with their square. In parts, a text of any length fits into memory. Each weight is read
once for every part, which for hundreds of tokens takes little of the time of a part.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.blame.unit_call import logits_in, main_output
from precheck.measure.lockstep.decoding import FixedOrder, UnmatchedForwards
from precheck.measure.lockstep.fatal import raise_if_fatal
from precheck.measure.lockstep.products import ProductEmulation
from precheck.measure.lockstep.turns import advance
from precheck.measure.watch.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import Cache

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch

TRIED_TOKENS = 48
"""Enough for two parts; a model that cannot go on in the middle cannot do so anywhere."""

TOLERANCE = 1e-3
"""Relative distance of two outputs in float32. Another order of additions changes them by about
1e-6, what was forgotten between two parts by more than a hundredth."""


def can_continue(
    skeleton: Skeleton, batch: Batch, *, weights: SharedModels, layout: Architecture
) -> bool:
    """Whether a model's second half of a text is the same after the first one alone.

    Not every code can: layers that share keys, or that keep a state for single tokens only.

    Args:
        skeleton: a float32 run.
        batch: a text without padding, on the run's device.
        weights: load and free the parameters.
        layout: the model's units.
    """
    if not skeleton.can_keep_cache:
        return False
    tried = next(batch.parts(TRIED_TOKENS))
    forwards = [
        _Trial(
            forward,
            skeleton=run,
            batch=tried,
            layout=layout,
            products=ProductEmulation(),
            presence=weights.presence(run),
        )
        for run, forward in ((skeleton.another(), _at_once), (skeleton.another(), _in_halves))
    ]
    advance([each.worker for each in forwards], FixedOrder())
    expected, found = (each.output for each in forwards)
    if expected is None or found is None or expected.shape != found.shape:
        return False
    distance, size = (found - expected).norm(), expected.norm()
    return bool(distance <= TOLERANCE * size)


class _Trial(UnmatchedForwards):
    """One way to run a text; keeps the output of its second half, None where that is an error."""

    def __init__(self, forward: Callable[[Skeleton, Batch], Tensor | None], **of_run: Any) -> None:
        super().__init__(**of_run)
        self.output: Tensor | None = None
        self._forward = forward

    def run(self) -> None:
        """Calls the model."""
        with self._watch():
            try:
                self.output = self._forward(self._skeleton, self._batch)
            except Exception as error:  # noqa: BLE001  then the text is run at once
                raise_if_fatal(error)


def _at_once(skeleton: Skeleton, batch: Batch) -> Tensor | None:
    output = _output(skeleton, skeleton.forward(batch))
    return None if output is None else output[:, batch.input_ids.shape[1] // 2 :]


def _in_halves(skeleton: Skeleton, batch: Batch) -> Tensor | None:
    cache = skeleton.empty_cache()
    half = batch.input_ids.shape[1] // 2
    outputs = [
        skeleton.forward(part, cache=cache)
        for part in (
            batch.columns(slice(None, half)),
            batch.columns(slice(half, None)),
        )
    ]
    return _output(skeleton, outputs[-1])


def _output(skeleton: Skeleton, output: Any) -> Tensor | None:
    logits = logits_in(output, skeleton.vocab_size)
    return main_output(list(tensors_in(output))) if logits is None else logits


def is_broken(cache: Cache) -> bool:
    """Whether a key or value is not finite, so that no fault after it is a new one."""
    tensors = (
        tensor
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if isinstance(tensor, torch.Tensor) and tensor.numel()
    )
    return any(not math.isfinite(float(bound)) for each in tensors for bound in torch.aminmax(each))
