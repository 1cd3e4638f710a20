"""What a forward accepts besides text, by the names of its arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_CONTENT = (
    "pixel",
    "image",
    "video",
    "audio",
    "speech",
    "input_features",
    "input_values",
    "patches",
    "encoder_hidden_states",
)
_ABOUT_CONTENT = (
    "mask",
    "id",
    "ids",
    "size",
    "sizes",
    "grid",
    "layer",
    "strategy",
    "position",
    "ratio",
    "num",
    "shape",
    "shapes",
    "indices",
    "length",
    "lengths",
    "mode",
    "type",
)
"""Words in the names of arguments that say where or how large, and hold no content."""


def content_inputs(accepts: Iterable[str]) -> tuple[str, ...]:
    """The arguments that hold images, sounds, videos, or states of another encoder."""
    return tuple(
        name
        for name in sorted(accepts)
        if any(word in name for word in _CONTENT) and not set(name.split("_")) & set(_ABOUT_CONTENT)
    )


def medium_of(name: str) -> str:
    """What an argument holds: ``image``, ``video``, ``sound`` or ``state``."""
    if "video" in name:
        return "video"
    if any(word in name for word in ("audio", "speech", "input_features", "input_values")):
        return "sound"
    return "state" if name == "encoder_hidden_states" else "image"


def unfed(accepts: Iterable[str], fed: Collection[str]) -> tuple[str, ...]:
    """The media that a forward accepts, and that it was not given.

    Where one argument of a medium was given, another of the same is a way to give it precomputed.
    """
    given = {medium_of(name) for name in fed}
    missing = (medium_of(name) for name in content_inputs(accepts))
    return tuple(dict.fromkeys(medium for medium in missing if medium not in given))
