"""What all runs are fed: probes, and prompts that they write behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.probes.media_batches import Processor
from precheck.measure.probes.tokens import (
    Plan,
    generation_batches,
    plan_probes,
    with_decoder_input,
)
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.measure.subject.token_inputs import decoder_start, vocab_size

if TYPE_CHECKING:
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.prepared import Prepared
    from precheck.measure.probes.batch import Batch
    from precheck.measure.probes.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Inputs:
    """Batches for every run."""

    vocabulary: Vocabulary
    plan: Plan
    """The probes."""
    to_continue: tuple[Batch, ...] = ()
    """Prompts that every run writes something behind."""


def plan_inputs(prepared: Prepared) -> Inputs:
    """Makes the batches.

    Raises:
        UsageError: a prompt that the model cannot take.
        UnsupportedModelError: the model takes no token ids, or no probe can be made for it.
    """
    request, reference = prepared.request, prepared.reference
    max_context = prepared.facts.max_context
    size = vocab_size(reference.model)
    vocabulary = read_vocabulary(prepared.subject.checkpoint, size=size)
    processor = Processor(prepared.subject.checkpoint, accepts=reference.accepts, vocab_size=size)
    plan = plan_probes(
        vocabulary,
        processor,
        prompts=request.prompts,
        builtin_probes=request.builtin_probes,
        quick=request.quick,
        max_context=max_context,
    )
    if reference.is_encoder_decoder:
        plan = _with_decoder_inputs(plan, reference)
    if not request.num_generated:
        return Inputs(vocabulary=vocabulary, plan=plan)
    to_continue = generation_batches(
        vocabulary,
        processor,
        prompts=request.prompts if request.continues_own else None,
        max_context=max_context,
    )
    return Inputs(vocabulary=vocabulary, plan=plan, to_continue=to_continue)


def _with_decoder_inputs(plan: Plan, reference: Skeleton) -> Plan:
    start = decoder_start(reference.model)
    batches = tuple(
        batch if batch.media else with_decoder_input(batch, start_id=start)
        for batch in plan.batches
    )
    return Plan(batches=batches, not_run=plan.not_run)
