"""Batches through all runs, wave by wave, and the clock that says how far they are."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from precheck.errors import CheckpointError, MemoryExhaustedError
from precheck.measure.batch_waves import in_waves, is_near_context
from precheck.measure.blame.mechanisms import Classifier
from precheck.measure.bounds.certificates import Certificates
from precheck.measure.lockstep.clock import LOGIT_WORK, Clock
from precheck.measure.lockstep.continuing import can_continue
from precheck.measure.lockstep.wave_run import WaveRun
from precheck.measure.long_text import run_in_parts
from precheck.measure.models.streamed import StreamedModels
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from precheck.measure.gathered import Gathered
    from precheck.measure.inputs import Inputs
    from precheck.measure.models.configurations import RunGroup
    from precheck.measure.prepared import Prepared
    from precheck.measure.probes.batch import Batch
    from precheck.records.progress import Observer

MOST_ADDED_OPS = 1 << 13
"""For the text near the context: seconds for a run of which every operation is watched."""


def run_batches(
    prepared: Prepared,
    inputs: Inputs,
    indices: Sequence[int],
    gathered: Gathered,
    *,
    memory_limit: int,
    observe: Observer,
) -> None:
    """Runs batches in lockstep, and adds what they find to ``gathered``, also before an error.

    Args:
        prepared: the models.
        inputs: the batches.
        indices: those to run.
        gathered: also keeps the error that stops all runs, if one does.
        memory_limit: bytes that the scan may take.
        observe: is called before every step.
    """
    request = prepared.request
    certificates = None
    if request.proves:
        certificates = Certificates(prepared.skeletons, minutes=request.proof_minutes)
    new_run = partial(
        WaveRun,
        groups=prepared.groups,
        weights=prepared.models,
        layout=prepared.layout,
        classifier=Classifier(),
        decode=inputs.vocabulary.decode,
        clock=_clock(prepared, inputs, indices, observe=observe),
        memory_limit=memory_limit,
        keeps_entries=request.capsule is not None,
        facts=prepared.facts,
        witness=request.witness,
        certificates=certificates,
    )
    try:
        for wave in in_waves(inputs.plan.batches, indices, is_streamed=request.is_streamed):
            _run_or_leave_out(new_run, prepared, inputs, wave, gathered)
        gathered.leave_out_refused(inputs.plan.batches)
        if certificates is not None:
            gathered.bounds = certificates.finished()
    except (CheckpointError, MemoryExhaustedError) as error:
        gathered.stop(error)


def _run_or_leave_out(
    new_run: Callable[..., WaveRun],
    prepared: Prepared,
    inputs: Inputs,
    wave: list[int],
    gathered: Gathered,
) -> None:
    """Runs the batches of a wave, or leaves them out where they can be spared and are too much."""
    batches = [inputs.plan.batches[index].to(prepared.device) for index in wave]
    can_be_spared = bool(gathered.totals) and _can_be_spared(prepared, batches[0])
    if can_be_spared and _added_ops(batches[0], inputs, gathered) > MOST_ADDED_OPS:
        gathered.leave_out(wave[0], batches[0], why="too many steps, one per token")
        return
    parts = _parts(prepared, inputs, batches[0])
    try:
        if parts is None:
            _run_wave(new_run, wave, batches, gathered)
        else:
            gathered.part_tokens = inputs.part_tokens
            _run_parts(new_run, prepared.groups, wave[0], parts, gathered)
    except MemoryExhaustedError:
        if not can_be_spared:
            raise
        gathered.leave_out(wave[0], batches[0], why="out of memory")


def _added_ops(batch: Batch, inputs: Inputs, gathered: Gathered) -> float:
    """How many operations more a run of a long batch has than one of the longest so far, about.

    Attention has as many for every length, a recurrence that is written in Python one more step for
    each token.
    """
    others = inputs.plan.batches
    known = [
        (others[index].input_ids.shape[1], runs[0].num_watched)
        for index, runs in gathered.totals.items()
        if not others[index].media
    ]
    if not known:
        return 0.0
    (short, few), (long, many) = min(known), max(known)
    per_token = (many - few) / (long - short) if long > short else 0.0
    return per_token * (batch.input_ids.shape[1] - long)


def _can_be_spared(prepared: Prepared, batch: Batch) -> bool:
    """Whether a scan is complete without it: the text near the context that nobody asked for."""
    return is_near_context(batch) and prepared.request.context is None


def _run_parts(
    new_run: Callable[..., WaveRun],
    groups: Sequence[RunGroup],
    index: int,
    parts: Iterator[Batch],
    gathered: Gathered,
) -> None:
    """Runs a text part by part; after an error, ``gathered`` has what was measured."""
    for totals in run_in_parts(new_run, groups, parts):
        gathered.totals[index] = totals
    gathered.finished.add(index)


def _parts(prepared: Prepared, inputs: Inputs, batch: Batch) -> Iterator[Batch] | None:
    """The parts of a text too long for memory, if the model can go on in the middle of one."""
    if inputs.part_tokens is None or not batch.is_by_position:
        return None
    is_possible = can_continue(
        prepared.reference, batch, weights=prepared.models, layout=prepared.layout
    )
    return batch.parts(inputs.part_tokens) if is_possible else None


def _run_wave(
    new_run: Callable[[list[Batch]], WaveRun],
    wave: list[int],
    batches: list[Batch],
    gathered: Gathered,
) -> None:
    """Runs the batches of one wave; after an error, ``gathered`` has what was measured."""
    run = new_run(batches)
    try:
        run.go()
    finally:
        gathered.totals |= dict(zip(wave, run.totals, strict=True))
        gathered.finished |= set(wave[: run.num_done])
    for index, batch in zip(wave, batches, strict=True):
        _run_alone(new_run, batch, index, gathered)


def _run_alone(
    new_run: Callable[[list[Batch]], WaveRun], batch: Batch, index: int, gathered: Gathered
) -> None:
    """Runs each row of a batch that the model refuses as a batch, in float32 already.

    Classifiers on a decoder refuse several rows without a padding token, some encoder-decoders rows
    with unequal numbers of end tokens.
    """
    first, *_ = gathered.totals[index]
    if first.failure is None or len(batch.probes) == 1:
        return
    alone = new_run(list(batch.rows()))
    alone.go()
    failed = [
        probe.name
        for probe, runs in zip(batch.probes, alone.totals, strict=True)
        if runs[0].failure is not None
    ]
    if len(failed) < len(batch.probes):
        rows = [runs for runs in alone.totals if runs[0].failure is None]
        gathered.replace_batch(index, rows, failed=failed)


def _clock(
    prepared: Prepared, inputs: Inputs, indices: Sequence[int], *, observe: Observer
) -> Clock:
    models, units = prepared.models, prepared.layout.units
    num_runs = len(prepared.skeletons)
    batches = [inputs.plan.batches[index] for index in indices]
    num_tokens = sum(batch.input_ids.numel() for batch in batches)
    num_media_positions = sum(batch.num_media_positions for batch in batches)
    waves = in_waves(inputs.plan.batches, indices, is_streamed=prepared.request.is_streamed)
    is_streamed = isinstance(models, StreamedModels)
    return Clock(
        observe,
        work={unit.name: _work(prepared.reference.model, unit.name) for unit in units},
        num_tokens={
            unit.name: num_runs * (num_media_positions if unit.section in TOWERS else num_tokens)
            for unit in units
        },
        round_steps=num_runs * max(map(len, waves), default=0),
        bytes_read=lambda: models.bytes_read,
        total_bytes=prepared.subject.stored_bytes if is_streamed else 0,
    )


def _work(model: nn.Module, unit: str) -> float:
    """Multiplications for one token: parameters except those that are only looked up."""
    module = model.get_submodule(unit)
    looked_up = {
        id(embedding.weight)
        for embedding in module.modules()
        if isinstance(embedding, nn.Embedding)
    }
    products = sum(
        parameter.numel() for parameter in module.parameters() if id(parameter) not in looked_up
    )
    num_logits = module.out_features if isinstance(module, nn.Linear) else 0
    return float(products + LOGIT_WORK * num_logits)
