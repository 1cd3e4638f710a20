"""Sentences on what a fix was, or could not be, proved with, and what it changes for callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.checkpoint.architecture import token_embedding
from precheck.records.quantities import listed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from precheck.cure.media.gather import Media
    from precheck.records.outcomes.fix import Factor


class Refusal(NamedTuple):
    """Why no fix is tried."""

    sentence: str
    reasons: tuple[str, ...]


def refused_media(media: Media) -> Refusal | None:
    """Refuses a model with inputs that no proof could provide; None if it has none."""
    if not media.unproved:
        return None
    return Refusal(
        f"it takes {_plural(media.unproved)}, but a fix could be proved only on text",
        (*_problem(media), f"no input of that kind could be generated: {_layout(media)}"),
    )


def verdict_notes(media: Media, *, is_of_report: bool) -> tuple[str, ...]:
    """What a verdict does not cover.

    Args:
        media: what the model takes besides text.
        is_of_report: it was made before, without anything synthetic.
    """
    missed = (*media.unproved, *(media.synthetic if is_of_report else ()))
    return (f"this does not cover {_plural(missed)}, which were not tried",) if missed else ()


def media_notes(media: Media) -> tuple[str, ...]:
    """Which media a fix is proved on, where these differ from real inputs."""
    notes = []
    if media.synthetic:
        notes.append(
            f"{'; '.join((*_problem(media), ''))}{_plural(media.synthetic)} in the proof are "
            "synthetic, with the shapes that the model expects"
        )
    if media.alike:
        notes.append(
            f"{_plural(media.alike)} were not tried: they use the same parameters as what was"
        )
    return tuple(notes)


def embedding_notes(model: nn.Module, factors: Iterable[Factor]) -> tuple[str, ...]:
    """What to know for callers who pass the model more than token ids."""
    weight = getattr(token_embedding(model), "weight", None)
    names = {name for name, each in model.named_parameters() if each is weight}
    powers = [factor.power for factor in factors if factor.parameter in names]
    if not powers:
        return ()
    return (
        (
            f"its token embedding is scaled by 2^{powers[0]}: inputs_embeds, soft prompts and "
            "adapters made for the original do not work with it"
        ),
    )


def _plural(media: tuple[str, ...]) -> str:
    words = {"state": "states of another encoder"}
    return listed(tuple(words.get(medium, f"{medium}s") for medium in media), most=3)


def _problem(media: Media) -> tuple[str, ...]:
    return (media.problem,) if media.problem else ()


def _layout(media: Media) -> str:
    return f"the model takes {_plural(media.unproved)} in a layout that precheck does not know"
