"""The inputs of all runs: probes, and prompts to generate after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.probes.context import context_tokens, requested_context
from precheck.measure.probes.first_tokens import odd_first_tokens
from precheck.measure.probes.media_batches import Processor
from precheck.measure.probes.tokens import (
    Plan,
    Reach,
    generation_batches,
    plan_probes,
    with_decoder_input,
)
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.measure.subject.token_inputs import decoder_start, input_embedding, vocab_size

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
    part_tokens: int | None = None
    """Tokens of each forward of the longest text; None where it fits into memory at once."""
    to_continue: tuple[Batch, ...] = ()
    """Prompts that every run generates text after."""


def plan_inputs(prepared: Prepared) -> Inputs:
    """Makes the batches.

    Raises:
        UsageError: a prompt that the model cannot take.
        UnsupportedModelError: the model takes no token ids, or no probe can be made for it.
    """
    request, reference = prepared.request, prepared.reference
    max_context = prepared.facts.max_context
    size = vocab_size(reference.model)
    vocabulary = read_vocabulary(
        prepared.subject.checkpoint, size=size, tokenizer=prepared.subject.tokenizer
    )
    processor = Processor(prepared.subject.checkpoint, accepts=reference.accepts, vocab_size=size)
    plan = plan_probes(
        vocabulary,
        processor,
        prompts=request.prompts,
        given=request.batches,
        builtin_probes=request.runs_builtin_probes,
        quick=request.quick,
        max_context=max_context,
        reach=_reach(prepared, vocabulary),
    )
    # a classifier makes the target itself, and looks for the input's end token in it
    is_classifier = prepared.facts.architecture.endswith("ForSequenceClassification")
    if reference.is_encoder_decoder and not is_classifier:
        plan = _with_decoder_inputs(plan, reference)
    plan = plan.by_position()
    if not request.num_generated:
        return Inputs(vocabulary=vocabulary, plan=plan)
    to_continue = generation_batches(
        vocabulary,
        processor,
        prompts=request.prompts if request.continues_own else None,
        max_context=max_context,
    )
    return Inputs(vocabulary=vocabulary, plan=plan, to_continue=to_continue)


def _reach(prepared: Prepared, vocabulary: Vocabulary) -> Reach:
    """How far the probes go for this model; the embedding is read only for the built-in ones."""
    requested = requested_context(prepared.request.context, prepared.facts)
    if prepared.request.quick or not prepared.request.runs_builtin_probes:
        return Reach(context_tokens=requested)
    embedding = input_embedding(prepared.subject.checkpoint, prepared.reference.model)
    has_rounded_positions = bool(prepared.models.rounded_buffers)
    return Reach(
        context_tokens=requested or context_tokens(prepared.facts, is_needed=has_rounded_positions),
        first_tokens=tuple(odd_first_tokens(vocabulary, embedding)),
    )


def _with_decoder_inputs(plan: Plan, reference: Skeleton) -> Plan:
    start = decoder_start(reference.model)
    batches = tuple(
        batch if batch.media else with_decoder_input(batch, start_id=start)
        for batch in plan.batches
    )
    return Plan(batches=batches, not_run=plan.not_run)
