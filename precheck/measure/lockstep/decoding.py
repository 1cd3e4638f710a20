"""One run that continues a prompt with its cache, greedily and with sampling.

After a few tokens a run has written other tokens than its reference, so that their operations can
no longer be compared. A ``Watch`` judges each operation by itself instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from precheck.errors import first_line
from precheck.measure.blame.live import Watch
from precheck.measure.formats.stored_cache import check_used
from precheck.measure.lockstep.fatal import raise_if_fatal
from precheck.measure.lockstep.turns import Worker
from precheck.measure.models.from_pretrained import SEED
from precheck.records.traces import SAMPLED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.lockstep.products import ProductEmulation
    from precheck.measure.models.presence import Presence
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.records.traces import Overflow


@dataclass(slots=True, eq=False, kw_only=True)
class Decoded:
    """What one run wrote with one decoding strategy."""

    strategy: str
    """Greedy or sampled."""
    tokens: list[int] = field(default_factory=list)
    overflow: Overflow | None = None
    broken_step: int | None = None
    """The forward that broke: 0 is the prompt, k the one after k tokens."""
    error: str | None = None


class UnmatchedForwards:
    """Forwards of one run in a thread of its own, whose operations are not compared.

    Args:
        skeleton: the run's model.
        batch: what they start from, on the run's device.
        layout: the model's units.
        products: computes matrix products where the device's own kernels do not.
        presence: loads and frees the parameters of the model.
    """

    is_replaying = False

    def __init__(
        self,
        *,
        skeleton: Skeleton,
        batch: Batch,
        layout: Architecture,
        products: ProductEmulation,
        presence: Presence,
    ) -> None:
        self.worker = Worker(
            name=str(skeleton.dtype),
            model=skeleton.model,
            units=layout.units,
            presence=presence,
            workload=self,
        )
        self._skeleton = skeleton
        self._batch = batch
        self._products = products

    def run(self) -> None:
        """Calls the model."""
        raise NotImplementedError

    def enter_unit(self, _unit: Unit, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        """Leaves the forward if the coordinator gave it up."""
        self.worker.turns.check()

    def leave_unit(self, _unit: Unit, _output: Any) -> None:
        """Nothing to do."""

    def skips(self, _unit: Unit) -> bool:
        """Every unit is computed: the tokens that follow a fault are part of what a user sees."""
        return False

    def _watch(self) -> Watch:
        """Judges each operation by itself, and computes products as the run does."""
        return Watch(
            self._skeleton.model,
            products=self._products.products_of(self._skeleton),
            parameters=self._skeleton.parameters,
        )


class Decoding(UnmatchedForwards):
    """One run that continues one prompt, for so many tokens if none of them ends the text."""

    def __init__(self, *, num_tokens: int, strategies: Sequence[str], **of_run: Any) -> None:
        super().__init__(**of_run)
        self.decoded: list[Decoded] = []
        """By decoding strategy, in the order in which they ran."""
        self._num_tokens = num_tokens
        self._strategies = strategies

    def run(self) -> None:
        """Decodes once with each strategy."""
        for strategy in self._strategies:
            self.decoded.append(self._decode(strategy))

    def _decode(self, strategy: str) -> Decoded:
        decoded = Decoded(strategy=strategy)
        model: Any = self._skeleton.model
        inputs = self._skeleton.inputs(self._batch)
        for argument in ("use_cache", "decoder_input_ids"):
            inputs.pop(argument, None)
        cache = self._skeleton.new_cache(is_kept=True)
        if cache is not None:
            inputs["past_key_values"] = cache
        sampling = _SeededSampling()
        with self._watch() as watch:
            try:
                output = model.generate(
                    **inputs,
                    max_new_tokens=self._num_tokens,
                    do_sample=strategy == SAMPLED,
                    num_beams=1,
                    logits_processor=LogitsProcessorList([sampling]),
                )
                decoded.tokens = output[0, sampling.num_before :].tolist()
                if cache is not None:
                    check_used(cache)
            except Exception as error:  # noqa: BLE001  what sampling raises is part of the result
                raise_if_fatal(error)
                decoded.error = f"{type(error).__name__}: {first_line(error)}"
                decoded.tokens = sampling.tokens
            decoded.overflow, decoded.broken_step = watch.first_overflow, watch.broken_forward
        return decoded


class _SeededSampling(LogitsProcessor):
    """Seeds torch's generator before each token is sampled, and records the tokens so far.

    The seed depends on the position alone, so that all runs sample with the same random numbers
    whatever other threads sampled in between.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        """Those written so far; they are there also where sampling the next one raises."""
        self.num_before: int | None = None
        """Tokens of the prompt, or of what the decoder starts from."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores unchanged."""
        if self.num_before is None:
            self.num_before = input_ids.shape[1]
        self.tokens = input_ids[0, self.num_before :].tolist()
        torch.manual_seed(SEED + input_ids.shape[1])
        return scores


class FixedOrder:
    """A schedule without a preference: all runs in the order in which they are given."""

    def order(self, waiting: list[Worker]) -> list[Worker]:
        """The workers as they are."""
        return waiting

    def before(self, worker: Worker) -> None:
        """Nothing to do."""

    def after(self, worker: Worker) -> None:
        """Raises an error that concerns all runs, which ends them."""
        if worker.error is not None:
            raise_if_fatal(worker.error)
