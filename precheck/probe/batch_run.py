"""One batch through every run, in lockstep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.probe.lockstep import Worker, advance
from precheck.probe.memory import is_out_of_memory, memory_error
from precheck.probe.run_watch import RunWatch
from precheck.probe.skeleton import first_line
from precheck.records.progress import Observer, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.checkpoint.architecture import Architecture
    from precheck.probe.batches import Batch
    from precheck.probe.classify import Classifier
    from precheck.probe.run_totals import RunTotals
    from precheck.probe.symptom import Decode


class Steps:
    """Counts the steps of one batch for whoever watches the scan."""

    def __init__(self, observe: Observer, *, weight: int, done: int, total: int) -> None:
        self._observe = observe
        self._weight = weight
        self._done = done
        self._total = total

    def turn(self, worker: Worker) -> None:
        """A worker is about to go on."""
        if worker.is_entering:
            self._observe(
                Step(
                    run=worker.name,
                    unit=worker.standing_at,
                    done=min(self._done, self._total),
                    total=self._total,
                )
            )
            self._done += self._weight


def run_batch(
    batch: Batch,
    groups: Sequence[Sequence[RunTotals]],
    *,
    layout: Architecture,
    classifier: Classifier,
    decode: Decode,
    steps: Steps,
) -> None:
    """Adds a batch to the totals of every run that has not failed.

    Args:
        batch: the probes, on the runs' device.
        groups: runs by attention implementation, the float32 run of each first.
        layout: the model's units.
        classifier: says why operations overflow.
        decode: token ids to text.
        steps: told before each unit of each run.

    Raises:
        MemoryExhaustedError: a run found no memory, and neither would the others.
    """
    watches: list[RunWatch] = []
    workers: list[tuple[RunTotals, Worker]] = []
    first: RunWatch | None = None
    for group in groups:
        reference: RunWatch | None = None
        for totals in group:
            if totals.failure is not None:
                continue
            watch, worker = _worker(
                totals,
                batch=batch,
                layout=layout,
                reference=reference,
                baseline=reference or first,
                classifier=classifier,
                decode=decode,
            )
            reference, first = reference or watch, first or watch
            watches.append(watch)
            workers.append((totals, worker))
    try:
        advance([worker for _, worker in workers], steps.turn)
    finally:
        for watch in watches:
            watch.detach()
    for totals, worker in workers:
        if worker.error is not None:
            totals.failure = _failure(worker.error)
    for group in groups:
        _fail_without_reference(group)


def _fail_without_reference(group: Sequence[RunTotals]) -> None:
    if group[0].failure is not None:
        for totals in group[1:]:
            totals.failure = totals.failure or f"the float32 reference failed: {group[0].failure}"


def _worker(
    totals: RunTotals,
    *,
    batch: Batch,
    layout: Architecture,
    reference: RunWatch | None,
    baseline: RunWatch | None,
    classifier: Classifier,
    decode: Decode,
) -> tuple[RunWatch, Worker]:
    skeleton = totals.skeleton
    worker = Worker(
        name=f"{skeleton.dtype} + {skeleton.attn_implementation}",
        model=skeleton.model,
        units=layout.units,
    )
    watch = RunWatch(
        totals=totals,
        batch=batch,
        layout=layout,
        reference=reference,
        baseline=baseline,
        classifier=classifier,
        decode=decode,
        check=worker.turns.check,
    )
    worker.passenger = watch
    return watch, worker


def _failure(error: BaseException) -> str:
    """Why a run failed, in a line.

    Raises:
        MemoryExhaustedError: it ran out of memory, and so would the others.
    """
    if is_out_of_memory(error):
        raise memory_error(error, doing="during the scan") from error
    return f"{type(error).__name__}: {first_line(error)}"
