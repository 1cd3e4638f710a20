"""Batches through every run, in lockstep: one forward of every run over every batch, at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import PrecheckError, first_line
from precheck.measure.lockstep.fatal import raise_if_fatal
from precheck.measure.lockstep.run_totals import RunTotals
from precheck.measure.lockstep.run_watch import RunWatch
from precheck.measure.lockstep.turns import Worker, advance
from precheck.measure.machine.memory import (
    give_back_free_memory,
    is_out_of_memory,
    memory_error,
    used_bytes,
)
from precheck.measure.watch.float16_sums import Float16Sums
from precheck.measure.watch.rounded_products import RoundedProducts
from precheck.records.precision import Accumulation, Arithmetic, Dtype
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.blame.mechanisms import Classifier
    from precheck.measure.lockstep.clock import Clock
    from precheck.measure.lockstep.symptom import Decode
    from precheck.measure.lockstep.witness import Witness
    from precheck.measure.models.configurations import RunGroup
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch


@dataclass(slots=True, eq=False, kw_only=True)
class _Passage:
    """One run over one batch."""

    batch: int
    num_tokens: int
    num_media_positions: int
    totals: RunTotals
    watch: RunWatch
    worker: Worker


class BatchRun:
    """Every run over some batches, all of them together, so that each weight is read once.

    Args:
        batches: the probes, on the runs' device.
        groups: runs by attention implementation, the float32 run of each first.
        weights: give the parameters.
        layout: the model's units.
        classifier: says why operations overflow.
        decode: token ids to text.
        clock: told before each unit of each run.
        memory_limit: bytes that the scan may take.
        keeps_entries: keep how units were called in which something overflows.
        witness: is shown what the runs make.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        groups: Sequence[RunGroup],
        *,
        weights: SharedModels,
        layout: Architecture,
        classifier: Classifier,
        decode: Decode,
        clock: Clock,
        memory_limit: int,
        keeps_entries: bool,
        witness: Witness | None,
    ) -> None:
        self._witness = witness
        self._weights = weights
        self._layout = layout
        self._classifier = classifier
        self._decode = decode
        self._clock = clock
        self._memory_limit = memory_limit
        self._keeps_entries = keeps_entries
        self._num_batches = len(batches)
        self._ended: set[Worker] = set()
        self._products: dict[Dtype, RoundedProducts] = {}
        self._passages: list[_Passage] = []
        # all before the first is hooked: a copy would copy the hooks too
        copies = [
            [[_own(each, index) for each in group.skeletons] for group in groups]
            for index in range(len(batches))
        ]
        for index, batch in enumerate(batches):
            self._board(index, batch, copies[index])

    def go(self) -> None:
        """All of them to their ends; what they found until then stands also after an error.

        Raises:
            PrecheckError: the weights cannot be read, or memory ran out: no run can go on.
        """
        try:
            advance([each.worker for each in self._passages], self)
        finally:
            for each in self._passages:
                each.watch.detach()
            for each in self._passages:
                if each.worker.error is not None:
                    each.totals.failure = each.totals.failure or _failure(each.worker.error)

    @property
    def totals(self) -> list[list[RunTotals]]:
        """For each batch, its runs' totals, in the order of the groups."""
        return [[each.totals for each in self._of(index)] for index in range(self._num_batches)]

    @property
    def num_done(self) -> int:
        """How many batches, from the first on, every run has come to an end of."""
        for index in range(self._num_batches):
            if not all(each.worker in self._ended for each in self._of(index)):
                return index
        return self._num_batches

    def _of(self, batch: int) -> list[_Passage]:
        return [each for each in self._passages if each.batch == batch]

    def _board(self, index: int, batch: Batch, groups: list[list[Skeleton]]) -> None:
        first: RunWatch | None = None
        for group in groups:
            reference: RunWatch | None = None
            for skeleton in group:
                passage = self._passage(index, skeleton, batch, reference, reference or first)
                reference, first = reference or passage.watch, first or passage.watch
                self._passages.append(passage)

    def _passage(
        self,
        index: int,
        skeleton: Skeleton,
        batch: Batch,
        reference: RunWatch | None,
        baseline: RunWatch | None,
    ) -> _Passage:
        totals = RunTotals.of(skeleton)
        worker = Worker(
            name=f"{skeleton.dtype} + {skeleton.attn_implementation}",
            model=skeleton.model,
            units=self._layout.units,
            presence=self._weights.presence(skeleton),
        )
        watch = worker.passenger = RunWatch(
            totals=totals,
            skeleton=skeleton,
            batch=batch,
            layout=self._layout,
            reference=reference,
            baseline=baseline,
            classifier=self._classifier,
            decode=self._decode,
            check=worker.turns.check,
            products=self._products_of(skeleton),
            keeps_entries=self._keeps_entries,
            witness=self._witness,
        )
        return _Passage(
            batch=index,
            num_tokens=batch.input_ids.numel(),
            num_media_positions=batch.num_media_positions,
            totals=totals,
            watch=watch,
            worker=worker,
        )

    def _products_of(self, skeleton: Skeleton) -> RoundedProducts | Float16Sums | None:
        """One for all runs of a dtype: they share its memory."""
        if skeleton.configuration.accumulation is Accumulation.FLOAT16:
            return Float16Sums()
        if skeleton.arithmetic is Arithmetic.NATIVE:
            return None
        dtype: torch.dtype = torch_dtype(skeleton.dtype)
        return self._products.setdefault(skeleton.dtype, RoundedProducts(dtype))

    # The rounds of the lockstep.

    def order(self, standing: list[Worker]) -> list[Worker]:
        """Runs of one dtype together, which its weights are cast for; at the end by batch.

        From the last unit on, a batch is finished before the next one begins, and its logits
        are dropped.
        """
        passages = [each for each in self._passages if each.worker in standing]
        # text waits for what has to pass a tower first, so that layers are read once for both
        in_tower = [each for each in passages if self._is_tower(each.worker.standing_at)]
        passages = in_tower or passages
        last = self._layout.units[-1].name
        if not any(each.worker.standing_at == last for each in passages):
            passages.sort(key=lambda each: each.watch.dtype_rank)
        return [each.worker for each in passages]

    def before(self, worker: Worker) -> None:
        """A worker is about to go on."""
        if worker.is_entering:
            passage = next(each for each in self._passages if each.worker is worker)
            is_tower = self._is_tower(worker.standing_at)
            self._clock.tick(
                worker.name,
                worker.standing_at,
                num_tokens=passage.num_media_positions if is_tower else passage.num_tokens,
            )

    def _is_tower(self, module: str) -> bool:
        return bool(module) and self._layout.section_of(module) in TOWERS

    def after(self, worker: Worker) -> None:
        """Gives up what cannot go on, and frees what nobody compares with any more."""
        if used_bytes("cpu") > self._memory_limit / 2:  # memory that is new again costs time
            give_back_free_memory()
        if worker.error is not None:
            raise_if_fatal(worker.error)
        if worker.is_finished:
            self._ended.add(worker)
            passage = next(each for each in self._passages if each.worker is worker)
            self._release(self._of(passage.batch))

    def _release(self, batch: list[_Passage]) -> None:
        ended = [each.watch for each in batch if each.worker in self._ended]
        going = [each.watch for each in batch if each.worker not in self._ended]
        for watch in ended:
            if not any(each.waits_for(watch) for each in going):
                watch.release()


def _own(skeleton: Skeleton, batch: int) -> Skeleton:
    """The skeleton for one batch: every forward has modules and hooks of its own."""
    return skeleton.another() if batch else skeleton


def _failure(error: BaseException) -> str:
    """Why a run failed, in a line."""
    if is_out_of_memory(error):
        error = memory_error(error, doing="during the scan")
    if isinstance(error, PrecheckError):
        return error.message
    return f"{type(error).__name__}: {first_line(error)}"
