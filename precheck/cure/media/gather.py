"""What a fix is chosen with and proved by besides text, and what could not be made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precheck.checkpoint.quiet import quiet_transformers
from precheck.cure.media.accepted import content_inputs, unfed
from precheck.cure.media.arrays import Draw
from precheck.cure.media.synthetic import Synthetic
from precheck.errors import UntraceableError
from precheck.measure.models.empty import bare_model, empty_model
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.probes.media_batches import Processor
from precheck.measure.subject.token_inputs import vocab_size
from precheck.measure.trace.flow import trace_flow, traceable, traced_batches
from precheck.measure.watch.parameters import Parameters
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.probes.batch import Batch

_TO_CHOOSE = (Draw(seed=1), Draw(seed=2, contrast=2.0))
_TO_PROVE = (Draw(seed=11), Draw(seed=12, contrast=1.5))

_CROSS_ATTENTION = ("cross", "encoder_attn")
"""In the names of parameters that read the states of another encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Batches with images, sounds or videos."""

    choosing: tuple[Batch, ...] = ()
    """For the scan that a fix is chosen by; what a processor makes is in it already."""
    proving: tuple[Batch, ...] = ()
    """For the proof."""
    synthetic: tuple[str, ...] = ()
    """Media that no processor made."""
    unproved: tuple[str, ...] = ()
    """Media that could not be made, and that parameters depend on."""
    alike: tuple[str, ...] = ()
    """Media that could not be made, and that pass the same parameters as the others."""
    problem: str = ""
    """Why there is no processor."""

    @property
    def tracing(self) -> tuple[Batch, ...]:
        """One batch of each medium."""
        return tuple({batch.probes[0].kind: batch for batch in self.proving}.values())


def find_media(checkpoint: Checkpoint) -> Media:
    """What the checkpoint's model takes besides text, from its processor or generated.

    Raises:
        CheckpointError: the model class does not take its config.
    """
    bare = Skeleton(
        configuration=Configuration(dtype=Dtype.BFLOAT16, attn_implementation="eager"),
        model=bare_model(checkpoint),
        requested_attn_implementation="eager",
        parameters=Parameters(),
    )
    if not content_inputs(bare.accepts):
        return Media()
    processor = Processor(checkpoint, accepts=bare.accepts, vocab_size=vocab_size(bare.model))
    made = processor.held_out().batches
    missing = unfed(bare.accepts, {name for batch in made for name in content_inputs(batch.media)})
    if not missing:
        return Media(proving=made)
    skeleton = _skeleton(checkpoint)
    maker = Synthetic(skeleton)
    batches = {medium: maker.batches(medium, (*_TO_CHOOSE, *_TO_PROVE)) for medium in missing}
    choosing = tuple(batch for each in batches.values() for batch in each[: len(_TO_CHOOSE)])
    proving = tuple(batch for each in batches.values() for batch in each[len(_TO_CHOOSE) :])
    media = Media(
        choosing=choosing,
        proving=(*made, *proving),
        synthetic=tuple(medium for medium, each in batches.items() if each),
        # it may stand in the model card, where nobody's folders belong
        problem=processor.problem.replace(f"{checkpoint.folder}/", ""),
    )
    left = tuple(medium for medium, each in batches.items() if not each)
    return _with_left_out(media, left, skeleton) if left else media


def _with_left_out(media: Media, left: tuple[str, ...], skeleton: Skeleton) -> Media:
    """Media that are not there: do parameters that only they pass depend on it?"""
    unread = _unread(skeleton, media.tracing)
    unproved = tuple(medium for medium in left if _is_missed(medium, unread))
    alike = tuple(medium for medium in left if medium not in unproved and medium != "state")
    return replace(media, unproved=unproved, alike=alike)


def _unread(skeleton: Skeleton, batches: tuple[Batch, ...]) -> tuple[str, ...]:
    """Parameters that no operation reads on a text and on these batches."""
    names = tuple(name for name, _ in skeleton.model.named_parameters())
    try:
        read = trace_flow(skeleton.another(), traced_batches(skeleton, batches)).parameters
    except UntraceableError:
        return names
    return tuple(name for name in names if name not in read)


def _is_missed(medium: str, unread: tuple[str, ...]) -> bool:
    if medium == "state":
        return any(part in name for name in unread for part in _CROSS_ATTENTION)
    return bool(unread)


def _skeleton(checkpoint: Checkpoint) -> Skeleton:
    """The model without values for its parameters; its buffers have them."""
    with checkpoint.open_weights() as stored, quiet_transformers():
        model: nn.Module
        model, _ = empty_model(checkpoint, stored, Dtype.BFLOAT16)
    return traceable(model)
