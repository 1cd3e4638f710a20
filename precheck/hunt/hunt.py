"""Searches for the prompts that leave the least headroom, and runs them as a scan does."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from precheck.checkpoint.quiet import quiet_transformers
from precheck.checkpoint.source import open_checkpoint
from precheck.errors import (
    MemoryExhaustedError,
    UnsupportedModelError,
)
from precheck.hunt.check import check
from precheck.hunt.outcome import outcome
from precheck.hunt.saved_search import restore, saved
from precheck.hunt.scans import scanned
from precheck.measure.hunt.archive import Archive
from precheck.measure.hunt.budget import Budget
from precheck.measure.hunt.evaluator import Evaluator
from precheck.measure.hunt.factors import find_factors
from precheck.measure.hunt.pictures import PictureSpace
from precheck.measure.hunt.search import search
from precheck.measure.hunt.targets import TargetWitness
from precheck.measure.hunt.text_space import TextSpace
from precheck.measure.hunt.trial import Trial
from precheck.measure.machine.devices import resolve_device
from precheck.measure.machine.torch_settings import exact_float32, uncompiled
from precheck.measure.models.settings import setting, text_config
from precheck.measure.probes.context import MOST_SCORES
from precheck.measure.probes.first_tokens import odd_first_tokens
from precheck.measure.probes.media_batches import Processor
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.measure.subject.subject import CheckpointSubject
from precheck.measure.subject.token_inputs import input_embedding, max_context, vocab_size
from precheck.records.outcomes.hunt import Picture
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from precheck.hunt.request import HuntRequest
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.records.outcomes.hunt import Hunt
    from precheck.records.progress import Observer

_LONGEST = 4096
"""Tokens of the longest input, where neither the context nor memory says less."""
_FIRST_PICTURE = Picture(width=112, height=112)
"""Shows which operations an image reaches."""


def hunt(
    model: str,
    *,
    request: HuntRequest,
    observe: Observer,
    resumed: dict[str, Any] | None = None,
    keep: Callable[[str], None] = lambda _text: None,
) -> Hunt:
    """The worst prompts of a checkpoint that a search of bounded time finds.

    Args:
        model: a local folder, a Hub id or ``demo:NAME``.
        request: how long to search, and for what.
        observe: receives progress.
        resumed: a search to go on from, as ``keep`` got it.
        keep: gets the search as JSON text when it ends, also when it is interrupted.

    Raises:
        PrecheckError: the checkpoint cannot be scanned, or does not fit into memory in float32.
    """
    subject = CheckpointSubject(
        open_checkpoint(
            model,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
            observe=observe,
        )
    )
    witness = TargetWitness(request.dtype)
    before = scanned(subject, request, witness=witness, prompts=None, observe=observe)
    with trial_of(subject, request, witness, observe=observe) as trial:
        done = restore(trial, resumed, model=subject.name)
        try:
            search(
                trial,
                probes=list(witness.inputs),
                likely=likely_tokens(trial, subject),
                longest=longest_input(trial),
                done=done,
            )
        finally:  # also when it is interrupted
            keep(saved(trial, model=subject.name, done=done))
        found = outcome(trial, request, model=subject.name, done=done)
    return check(found, before, subject, request, observe=observe)


@contextmanager
def trial_of(
    subject: CheckpointSubject, request: HuntRequest, witness: TargetWitness, *, observe: Observer
) -> Iterator[Trial]:
    """What a search needs; the model is in memory, in float32, until the end.

    Args:
        subject: the checkpoint.
        request: how long to search, and for what.
        witness: of a scan of the checkpoint.
        observe: receives progress.

    Raises:
        UnsupportedModelError: nothing in the model is computed in 16 bits from text.
        PrecheckError: the model does not fit into memory in float32.
    """
    device = resolve_device(request.device)
    with (
        _in_words(),
        exact_float32(),
        quiet_transformers(),
        uncompiled(),
        closing(subject.models(device=device, is_resident=True)) as models,
    ):
        skeleton = _skeleton(models, witness)
        evaluator = Evaluator(skeleton, witness.targets(skeleton.attn_implementation), device)
        size = vocab_size(skeleton.model)
        with closing(evaluator):
            generator = torch.Generator().manual_seed(request.seed)
            rows = torch.randint(size, (3, 5), generator=generator)
            pictures = _pictures(subject, skeleton)
            evaluator.prepare(rows, None if pictures is None else pictures.batch(_FIRST_PICTURE))
            if not any(map(request.is_aim, evaluator.targets)):
                raise UnsupportedModelError(
                    "nothing to search for: no such operation runs in 16 bits on text",
                    hint="omit --mechanism, or scan with images: precheck scan MODEL",
                )
            space = TextSpace(
                read_vocabulary(subject.checkpoint, size=size), max_context(skeleton.model)
            )
            observe(Announcement(text=_announced(evaluator, space, request)))
            yield Trial(
                evaluator=evaluator,
                space=space,
                pictures=pictures,
                archive=Archive(len(evaluator.targets)),
                budget=Budget(seconds=60.0 * request.minutes, most_tokens=request.most_tokens),
                limit=request.dtype.limits.max,
                is_aim=request.is_aim,
                ends_at_first=request.ends_at_first,
                seed=request.seed,
                factors=find_factors(evaluator, rows),
                report=_reporter(observe),
            )


@contextmanager
def _in_words() -> Iterator[None]:
    """Says what to do where the model does not fit: a search cannot read weights again and again.

    Raises:
        MemoryExhaustedError: it does not.
    """
    try:
        yield
    except MemoryExhaustedError as error:
        raise MemoryExhaustedError(
            f"a search keeps the model in memory in float32: {error.message}",
            hint="search on a larger machine; precheck scan MODEL needs a layer at a time",
        ) from error


def _announced(evaluator: Evaluator, space: TextSpace, request: HuntRequest) -> str:
    words = f"{len(space.tokens):,} of {space.vocabulary.size:,} tokens are texts"
    if not space.has_text:
        words = f"{space.vocabulary.problem}: token ids only"
    return (
        f"searching for {request.minutes:g} minutes in float32 + "
        f"{evaluator.skeleton.attn_implementation}: {len(evaluator.targets):,} operations; {words}"
    )


def _reporter(observe: Observer) -> Callable[[str, float], None]:
    def report(part: str, share: float) -> None:
        observe(
            Step(run="hunt", unit=part, share=share, seconds_left=None, bytes_read=0, total_bytes=0)
        )

    return report


def _skeleton(models: SharedModels, witness: TargetWitness) -> Skeleton:
    """The model in float32, with attention that materialises its scores where it has that."""
    names = {attn for attn, _ in witness.found}
    if not names:
        raise UnsupportedModelError(
            "nothing to search for: no operation runs in 16 bits",
            hint="precheck scan MODEL shows what was run",
        )
    name = "eager" if "eager" in names else min(names)
    skeleton = models.skeleton(Dtype.FLOAT32, name)
    if getattr(skeleton.model, "main_input_name", "input_ids") != "input_ids":
        raise UnsupportedModelError(
            f"{type(skeleton.model).__name__} takes no text (expected a model of token ids)",
            hint="precheck scan MODEL runs images and sounds",
        )
    return skeleton


def _pictures(subject: CheckpointSubject, skeleton: Skeleton) -> PictureSpace | None:
    """What images the model takes; None where it takes none, or its processor does not load."""
    processor = Processor(
        subject.checkpoint, accepts=skeleton.accepts, vocab_size=vocab_size(skeleton.model)
    )
    if not processor.takes_images:
        return None
    tower = getattr(skeleton.model.config, "vision_config", None)
    heads = setting(tower, "num_heads") or setting(tower, "num_attention_heads") or 1
    most = max(heads, setting(text_config(skeleton.model), "num_attention_heads") or 1)
    return PictureSpace(processor=processor, most_positions=int((MOST_SCORES / most) ** 0.5))


def likely_tokens(trial: Trial, subject: CheckpointSubject) -> Sequence[int]:
    """Tokens that may matter as the first one, by their embedding."""
    embedding = input_embedding(subject.checkpoint, trial.evaluator.skeleton.model)
    return odd_first_tokens(trial.space.vocabulary, embedding)


def longest_input(trial: Trial) -> int:
    """Tokens of the longest input whose scores fit into memory."""
    config = text_config(trial.evaluator.skeleton.model)
    heads = setting(config, "num_attention_heads") or 1
    return min(_LONGEST, int((MOST_SCORES / heads) ** 0.5))
