"""Two views of a quantised cache: the prompt attends to stored keys and values, or not yet.

While an engine decodes, queries attend to the stored form of all earlier tokens. In the prompt's
own forward some attend to keys and values as they were before they are stored. Then the prompt's
answers, and the keys and values of its deeper layers, are those of the run without a format. Texts
are cut in halves, the first of which is the prompt, and both views are compared with float32 over
the second.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from precheck.measure.blame.unit_call import logits_in
from precheck.measure.formats.stored_cache import StoredCache
from precheck.measure.lockstep.decoding import FixedOrder, UnmatchedForwards
from precheck.measure.lockstep.fatal import raise_if_fatal
from precheck.measure.lockstep.figures.logits import LogitsTotals
from precheck.measure.lockstep.products import ProductEmulation
from precheck.measure.lockstep.turns import advance
from precheck.measure.models.quantized import QuantizedRuns
from precheck.measure.probes.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton


def prompt_views(
    skeleton: Skeleton,
    reference: Skeleton,
    batches: Sequence[Batch],
    *,
    weights: SharedModels,
    layout: Architecture,
) -> tuple[float | None, float | None]:
    """KL of the second halves after a stored prompt, and after one that is not stored yet, nats.

    None where a forward gives no logits, or the model cannot go on with a cache.

    Args:
        skeleton: a run whose cache has a format.
        reference: the float32 run.
        batches: texts without padding, on the runs' device.
        weights: load and free the parameters.
        layout: the model's units.
    """
    stored, unstored = LogitsTotals(), LogitsTotals()
    for batch in batches:
        half = batch.input_ids.shape[1] // 2
        forwards = (
            (reference, partial(_whole, half=half)),
            (skeleton, partial(_whole, half=half)),
            (skeleton, partial(_after_unstored_prompt, half=half)),
        )
        products, quantized = ProductEmulation(), QuantizedRuns(layout)
        halves = [
            _SecondHalf(
                forward,
                skeleton=run,
                batch=batch,
                layout=layout,
                products=products,
                presence=quantized.presence(run, weights.presence(run)),
            )
            for run, forward in ((owner.another(), forward) for owner, forward in forwards)
        ]
        advance([each.worker for each in halves], FixedOrder())
        expected, *found = (each.logits for each in halves)
        for totals, logits in zip((stored, unstored), found, strict=True):
            if expected is None or logits is None or logits.shape != expected.shape:
                return None, None
            rest = _rest(batch, half)
            totals.add(logits, expected, batch=rest, is_causal=False, same_routing=None)
    return stored.texts.verdict, unstored.texts.verdict


class _SecondHalf(UnmatchedForwards):
    """One run over a batch; keeps the logits of the second half."""

    def __init__(self, forward: Callable[[Skeleton, Batch], Tensor | None], **of_run: Any) -> None:
        super().__init__(**of_run)
        self.logits: Tensor | None = None
        self._forward = forward

    def run(self) -> None:
        """Calls the model."""
        with self._watch():
            try:
                self.logits = self._forward(self._skeleton, self._batch)
            except Exception as error:  # noqa: BLE001  then there is no second view
                raise_if_fatal(error)


def _whole(skeleton: Skeleton, batch: Batch, *, half: int) -> Tensor | None:
    logits = logits_in(skeleton.forward(batch), skeleton.vocab_size)
    return None if logits is None else logits[:, half:]


def _after_unstored_prompt(skeleton: Skeleton, batch: Batch, *, half: int) -> Tensor | None:
    cache = skeleton.new_cache(is_kept=True)
    if not isinstance(cache, StoredCache):
        return None
    cache.reads_stored = False
    skeleton.model(input_ids=batch.input_ids[:, :half], past_key_values=cache, use_cache=True)
    cache.reads_stored = True
    rest = batch.input_ids[:, half:]
    output = skeleton.model(input_ids=rest, past_key_values=cache, use_cache=True)
    return logits_in(output, skeleton.vocab_size)


def _rest(batch: Batch, half: int) -> Batch:
    probes = (replace(probe, num_tokens=probe.num_tokens - half) for probe in batch.probes)
    return Batch(probes=tuple(probes), input_ids=batch.input_ids[:, half:])
