"""The two readings of a checkpoint that stores both copies of tied parameters.

Transformers reads both copies; an engine that ties as the config says reads one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.measure.models.empty import bare_model
from precheck.measure.models.ties import declared_ties, stored_twice

if TYPE_CHECKING:
    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.models.ties import StoredTwice


def as_config_says(checkpoint: Checkpoint) -> Checkpoint | None:
    """The checkpoint without the copies that the config replaces; None if that changes nothing.

    Where both copies hold the same numbers, both readings are one model.
    """
    different = {pair.stored_name for pair in _copies(checkpoint) if not pair.is_equal}
    return replace(checkpoint, unread=frozenset(different)) if different else None


def diverged_copies(original: Checkpoint, fixed: Checkpoint) -> tuple[str, ...]:
    """Copies that were equal and no longer are, each as a sentence."""
    were_equal = {pair.stored_name for pair in _copies(original) if pair.is_equal}
    return tuple(
        f"the config ties {pair.stored_name} to {pair.stored_source}, but their scales differ"
        for pair in _copies(fixed)
        if pair.stored_name in were_equal and not pair.is_equal
    )


def _copies(checkpoint: Checkpoint) -> tuple[StoredTwice, ...]:
    model = bare_model(checkpoint)
    with checkpoint.open_weights() as stored:
        return stored_twice(model, stored, declared_ties(model))
