"""Batches through all runs, wave by wave, and the clock that says how far they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from precheck.errors import CheckpointError, MemoryExhaustedError
from precheck.measure.batch_waves import in_waves
from precheck.measure.blame.mechanisms import Classifier
from precheck.measure.lockstep.clock import LOGIT_WORK, Clock
from precheck.measure.lockstep.wave_run import WaveRun
from precheck.measure.models.streamed import StreamedModels
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.measure.gathered import Gathered
    from precheck.measure.inputs import Inputs
    from precheck.measure.prepared import Prepared
    from precheck.records.progress import Observer


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
    classifier = Classifier()
    clock = _clock(prepared, inputs, indices, observe=observe)
    try:
        for wave in in_waves(inputs.plan.batches, indices):
            run = WaveRun(
                [inputs.plan.batches[index].to(prepared.device) for index in wave],
                prepared.groups,
                weights=prepared.models,
                layout=prepared.layout,
                classifier=classifier,
                decode=inputs.vocabulary.decode,
                clock=clock,
                memory_limit=memory_limit,
                keeps_entries=prepared.request.capsule is not None,
                witness=prepared.request.witness,
            )
            try:
                run.go()
            finally:
                gathered.totals |= dict(zip(wave, run.totals, strict=True))
                gathered.finished |= set(wave[: run.num_done])
    except (CheckpointError, MemoryExhaustedError) as error:
        gathered.stop(error)


def _clock(
    prepared: Prepared, inputs: Inputs, indices: Sequence[int], *, observe: Observer
) -> Clock:
    models, units = prepared.models, prepared.layout.units
    num_runs = len(prepared.skeletons)
    batches = [inputs.plan.batches[index] for index in indices]
    num_tokens = sum(batch.input_ids.numel() for batch in batches)
    num_media_positions = sum(batch.num_media_positions for batch in batches)
    waves = in_waves(inputs.plan.batches, indices)
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
