"""Everything that runs: the batches, shared by all processes, text, and the capsule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.errors import (
    PrecheckError,
    ScanInterrupted,
    WeightsElsewhereError,
    first_line,
)
from precheck.measure.capsule.write import candidate, write_capsule
from precheck.measure.format_search import FormatSearch
from precheck.measure.gathered import Gathered, measurements
from precheck.measure.lockstep.generation import generate
from precheck.measure.processes import is_first_process, processes
from precheck.measure.run_waves import run_batches
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted

if TYPE_CHECKING:
    from precheck.measure.inputs import Inputs
    from precheck.measure.prepared import Prepared
    from precheck.records.traces import Generation


def run_all(
    prepared: Prepared, inputs: Inputs, *, memory_limit: int, observe: Observer
) -> Gathered:
    """What all runs find in all batches, and what they write.

    What stops all runs (a checkpoint that changes, memory that runs out) makes the scan
    incomplete; what was measured until then stays.

    Raises:
        PrecheckError: all runs were stopped before anything was measured.
        ScanInterrupted: Ctrl-C, with what was measured until then.
        WeightsElsewhereError: this model runs only with all weights in memory.
    """
    gathered = Gathered()
    try:
        _run_shared(prepared, inputs, gathered, memory_limit=memory_limit, observe=observe)
        if gathered.incomplete_reason is None:
            gathered.generations = _write_text(prepared, inputs, observe=observe)
            _search_formats(prepared, inputs, gathered, memory_limit=memory_limit, observe=observe)
        _write_capsule(prepared, gathered, observe=observe)
    except KeyboardInterrupt as error:
        gathered.break_off("interrupted")
        raise ScanInterrupted(measurements(prepared, inputs, gathered)) from error
    except WeightsElsewhereError:
        raise
    except PrecheckError as error:
        gathered.stop(error)
    if gathered.stopped_by is not None and not gathered.has_layers:
        raise gathered.stopped_by
    return gathered


def _run_shared(
    prepared: Prepared,
    inputs: Inputs,
    gathered: Gathered,
    *,
    memory_limit: int,
    observe: Observer,
) -> None:
    """Runs this process's share of the batches, and exchanges what was found with the others."""
    with processes(prepared.device) as group:
        own = group.share([batch.num_real_tokens for batch in inputs.plan.batches])
        run_batches(prepared, inputs, own, gathered, memory_limit=memory_limit, observe=observe)
        reasons = (gathered.incomplete_reason, gathered.row_by_row, gathered.part_tokens)
        share = (gathered.totals, gathered.finished, gathered.left_out, gathered.bounds, *reasons)
        for other in group.exchange(share):
            totals, finished, left_out, bounds, reason, row_by_row, part_tokens = other
            gathered.totals |= totals
            gathered.finished |= finished
            gathered.left_out |= left_out
            gathered.bounds |= bounds
            gathered.incomplete_reason = gathered.incomplete_reason or reason
            gathered.row_by_row = gathered.row_by_row or row_by_row
            gathered.part_tokens = gathered.part_tokens or part_tokens


def _write_text(
    prepared: Prepared, inputs: Inputs, *, observe: Observer
) -> list[tuple[Generation, ...]]:
    """What each run generates. Every process generates all of it; the first one reports."""
    prompts, num_tokens = inputs.to_continue, prepared.request.num_generated
    if not prompts:
        return []
    observe(
        Announcement(
            text=f"generating {counted(num_tokens, 'token')} after "
            f"{counted(len(prompts), 'prompt')}, {' and '.join(prepared.request.strategies)}"
        )
    )
    written: list[tuple[Generation, ...]] = [() for _ in prepared.skeletons]
    for batch in prompts:
        generations = generate(
            batch.to(prepared.device),
            prepared.groups,
            num_tokens=num_tokens,
            strategies=prepared.request.strategies,
            witness=prepared.request.witness,
            weights=prepared.models,
            layout=prepared.layout,
            decode=inputs.vocabulary.decode,
        )
        written = [(*of_run, *added) for of_run, added in zip(written, generations, strict=True)]
    return written


def _search_formats(
    prepared: Prepared,
    inputs: Inputs,
    gathered: Gathered,
    *,
    memory_limit: int,
    observe: Observer,
) -> None:
    """Finds what loses it where a format costs too much; every process finds the same."""
    limit = prepared.request.format_limit
    if limit is None:
        return
    totals = gathered.merged(prepared.skeletons)
    losses = {
        skeleton.configuration: 0.0 if skeleton.configuration.is_reference else run.divergence
        for skeleton, run in zip(prepared.skeletons, totals, strict=True)
    }
    for skeleton in prepared.skeletons:
        configuration = skeleton.configuration
        loss, without = losses[configuration], losses[configuration.without_formats]
        if loss is None or without is None:  # an overflow is named where it happened
            continue
        if configuration.has_format and without <= limit < loss:
            observe(Announcement(text=f"searching for what {skeleton.configuration} loses"))
            search = FormatSearch(
                prepared, inputs, skeleton, limit=limit, memory_limit=memory_limit
            )
            gathered.culprits[skeleton] = search.run()


def _write_capsule(prepared: Prepared, gathered: Gathered, *, observe: Observer) -> None:
    """Writes the layer that overflows, for somebody without the model; the first process does."""
    folder = prepared.request.capsule
    if folder is None or not is_first_process():
        return
    totals = gathered.merged(prepared.skeletons)
    overflow = candidate(zip(prepared.skeletons, (run.producers for run in totals), strict=True))
    if overflow is None:
        observe(Announcement(text="no capsule: no decoder layer overflowed"))
        return
    try:
        observe(Announcement(text=write_capsule(folder, overflow, weights=prepared.models)))
    except Exception as error:  # noqa: BLE001  the scan is done, whatever happens beside it
        reason = first_line(error)
        observe(Announcement(text=f"no capsule: {reason}", is_problem=True))
