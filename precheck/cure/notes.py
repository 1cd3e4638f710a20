"""Sentences on what a fix was, or could not be, proved with, and on what it changes for callers."""

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
    """Refuses a model that reads what no proof could feed it; None if there is no such thing."""
    if not media.unproved:
        return None
    return Refusal(
        f"it takes {_plural(media.unproved)}, and a fix could be proved on text alone",
        (*_problem(media), f"no input of that kind could be made up: {_layout(media)}"),
    )


def verdict_notes(media: Media, *, is_of_report: bool) -> tuple[str, ...]:
    """What a verdict does not speak for.

    Args:
        media: what the model takes besides text.
        is_of_report: it was made before, without anything synthetic.
    """
    missed = (*media.unproved, *(media.synthetic if is_of_report else ()))
    return (f"that is not said of {_plural(missed)}, which were not tried",) if missed else ()


def media_notes(media: Media) -> tuple[str, ...]:
    """What media a fix is proved on, where that is not what the model will be given."""
    notes = []
    if media.synthetic:
        notes.append(
            f"{'; '.join((*_problem(media), ''))}{_plural(media.synthetic)} in the proof are "
            "synthetic, of the shapes that the model takes"
        )
    if media.alike:
        notes.append(
            f"{_plural(media.alike)} were not tried: they pass the same parameters as what was"
        )
    return tuple(notes)


def embedding_notes(model: nn.Module, factors: Iterable[Factor]) -> tuple[str, ...]:
    """What callers have to know who give the model more than token ids."""
    weight = getattr(token_embedding(model), "weight", None)
    names = {name for name, each in model.named_parameters() if each is weight}
    powers = [factor.power for factor in factors if factor.parameter in names]
    if not powers:
        return ()
    return (
        (
            f"its token embedding is scaled by 2^{powers[0]}: inputs_embeds, soft prompts and "
            "adapters that were made for the original do not fit it"
        ),
    )


def _plural(media: tuple[str, ...]) -> str:
    words = {"state": "states of another encoder"}
    return listed(tuple(words.get(medium, f"{medium}s") for medium in media), most=3)


def _problem(media: Media) -> tuple[str, ...]:
    return (media.problem,) if media.problem else ()


def _layout(media: Media) -> str:
    return f"the model takes {_plural(media.unproved)} in a layout that precheck does not know"
