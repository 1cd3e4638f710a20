"""Batches through every run, in lockstep: one forward of every run over every batch, at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.errors import PrecheckError, first_line
from precheck.measure.lockstep.context import PassageContext
from precheck.measure.lockstep.fatal import raise_if_fatal
from precheck.measure.lockstep.passage import Passage
from precheck.measure.lockstep.products import ProductEmulation
from precheck.measure.lockstep.turns import advance
from precheck.measure.machine.memory import (
    give_back_free_memory,
    is_out_of_memory,
    memory_error,
    used_bytes,
)
from precheck.measure.models.quantized import QuantizedRuns
from precheck.records.answers import Embedding
from precheck.records.precision import Dtype
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import Cache

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.blame.mechanisms import Classifier
    from precheck.measure.bounds.certificates import Certificates
    from precheck.measure.lockstep.clock import Clock
    from precheck.measure.lockstep.figures.run_totals import RunTotals
    from precheck.measure.lockstep.symptom import Decode
    from precheck.measure.lockstep.turns import Worker
    from precheck.measure.lockstep.witness import Witness
    from precheck.measure.models.configurations import RunGroup
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.records.configuration import Configuration
    from precheck.records.report import ModelFacts


class WaveRun:
    """Every run over some batches, all of them together, so that each weight is read once.

    Args:
        batches: the probes, on the runs' device.
        groups: runs by attention implementation, the float32 run of each first.
        weights: load and free the parameters.
        layout: the model's units.
        classifier: names the mechanisms of overflows.
        decode: token ids to text.
        clock: counts each run's entry into each unit.
        memory_limit: bytes that the scan may use.
        keeps_entries: keep the arguments of units in which something overflows.
        facts: what the model's answers are.
        witness: records what the runs compute.
        certificates: bound it, over all inputs.
        caches: keys and values before the only batch, by run; theirs are added.
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
        facts: ModelFacts,
        witness: Witness | None,
        certificates: Certificates | None,
        caches: Mapping[Skeleton, Cache] | None = None,
    ) -> None:
        self._caches = caches or {}
        self._context = PassageContext(
            layout=layout,
            classifier=classifier,
            decode=decode,
            keeps_entries=keeps_entries,
            generates=facts.generates,
            embedding=facts.embedding or Embedding(),
            witness=witness,
            certificates=certificates,
        )
        self._weights = weights
        self._products = ProductEmulation()
        self._quantized = QuantizedRuns(layout)
        self._clock = clock
        self._memory_limit = memory_limit
        # all before the first is hooked: a copy would copy the hooks too
        skeletons = [
            [[_own(skeleton, index) for skeleton in group.skeletons] for group in groups]
            for index in range(len(batches))
        ]
        self._by_batch = [
            self._passages_of(batch, of_batch)
            for batch, of_batch in zip(batches, skeletons, strict=True)
        ]
        self._passages = [passage for passages in self._by_batch for passage in passages]
        self._by_worker = {passage.worker: passage for passage in self._passages}
        self._ended: set[Passage] = set()

    def _passages_of(self, batch: Batch, groups: list[list[Skeleton]]) -> list[Passage]:
        """One for each run; the first of each group is the reference of the others."""
        passages: list[Passage] = []
        for group in groups:
            reference: Passage | None = None
            plain: dict[Configuration, Passage] = {}
            for skeleton in group:
                configuration = skeleton.configuration
                passage = Passage(
                    skeleton=skeleton,
                    batch=batch,
                    context=self._context,
                    reference=reference,
                    baseline=reference or next(iter(passages), None),
                    unformatted=plain.get(configuration.without_formats)
                    if configuration.has_format
                    else None,
                    products=self._products.products_of(skeleton),
                    presence=self._quantized.presence(skeleton, self._weights.presence(skeleton)),
                    cache=self._caches.get(skeleton),
                )
                reference = reference or passage
                plain.setdefault(configuration, passage)
                passages.append(passage)
        return passages

    def go(self) -> None:
        """Runs all forwards to their ends; after an error, the totals hold what was measured.

        Raises:
            PrecheckError: the weights cannot be read, or memory ran out: no run can continue.
        """
        try:
            advance([passage.worker for passage in self._passages], self)
        finally:
            for passage in self._passages:
                passage.detach()
            for passage in self._passages:
                error = passage.worker.error
                if error is not None:
                    passage.totals.failure = passage.totals.failure or _failure(error)

    @property
    def totals(self) -> list[list[RunTotals]]:
        """For each batch, its runs' totals, in the order of the groups."""
        return [[passage.totals for passage in passages] for passages in self._by_batch]

    @property
    def num_done(self) -> int:
        """How many batches, counted from the first, every run has finished."""
        for index, passages in enumerate(self._by_batch):
            if not self._ended.issuperset(passages):
                return index
        return len(self._by_batch)

    # The schedule of the lockstep.

    def order(self, waiting: list[Worker]) -> list[Worker]:
        """Runs of one dtype together, which its weights are cast for; at the end by batch.

        From the last unit on, a batch is finished before the next one begins, and its logits
        are dropped.
        """
        passages = [passage for passage in self._passages if passage.worker in waiting]
        # text waits for what has to pass a tower first, so that layers are read once for both
        in_tower = [one for one in passages if self._is_tower(one.worker.waiting_at)]
        passages = in_tower or passages
        last = self._context.layout.units[-1].name
        if not any(passage.worker.waiting_at == last for passage in passages):
            passages.sort(key=_rank)
        return [passage.worker for passage in passages]

    def before(self, worker: Worker) -> None:
        """Counts the step of a worker that is about to enter a unit."""
        if worker.is_entering:
            batch = self._by_worker[worker].batch
            is_tower = self._is_tower(worker.waiting_at)
            self._clock.tick(
                worker.name,
                worker.waiting_at,
                num_tokens=batch.num_media_positions if is_tower else batch.input_ids.numel(),
            )

    def _is_tower(self, module: str) -> bool:
        return bool(module) and self._context.layout.section_of(module) in TOWERS

    def after(self, worker: Worker) -> None:
        """Raises an error that concerns all runs; frees what no run needs for comparison."""
        if used_bytes("cpu") > self._memory_limit / 2:  # memory that is new again costs time
            give_back_free_memory()
        if worker.error is not None:
            raise_if_fatal(worker.error)
        if worker.is_finished:
            passage = self._by_worker[worker]
            self._ended.add(passage)
            self._release(next(batch for batch in self._by_batch if passage in batch))

    def _release(self, passages: list[Passage]) -> None:
        running = [passage for passage in passages if passage not in self._ended]
        for passage in passages:
            if passage in self._ended and not any(run.waits_for(passage) for run in running):
                passage.release()


def _own(skeleton: Skeleton, batch: int) -> Skeleton:
    """The skeleton for one batch: every forward has modules and hooks of its own."""
    return skeleton.another() if batch else skeleton


def _rank(passage: Passage) -> tuple[int, str]:
    """Float32 first, with which the others are compared; then one dtype after the other.

    Runs of one format together, which weights are stored in once for all batches; those without,
    which the others are compared with too, come first.
    """
    dtype, name = passage.skeleton.dtype, passage.skeleton.configuration.quantization
    return 0 if dtype.is_reference else 1 + list(Dtype).index(dtype), name or ""


def _failure(error: BaseException) -> str:
    """Why a run failed, in a line."""
    if is_out_of_memory(error):
        error = memory_error(error, doing="during the scan")
    if isinstance(error, PrecheckError):
        return error.message
    return f"{type(error).__name__}: {first_line(error)}"
