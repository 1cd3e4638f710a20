"""What is wrong with how tensors are stored: names, shapes and ties that are not the model's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFault:
    """A faulty stored tensor, and how much of it is affected."""

    name: str
    num_elements: int
    """How many of its elements are affected."""
    abs_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFault:
    """A parameter stored with another shape than the model expects."""

    name: str
    stored: tuple[int, ...]
    expected: tuple[int, ...]

    @property
    def is_shard(self) -> bool:
        """Whether it is a shard of a training run: empty, or a part of it in one flat row."""
        is_empty = 0 in self.stored and 0 not in self.expected
        return is_empty or len(self.stored) == 1 < len(self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """Parameters stored under other names, all of which differ in the same part."""

    old: str
    """The part as it is stored, with its dot: ``_orig_mod.``; empty if it is missing."""
    new: str
    """What the model has instead; empty if nothing."""
    is_prefix: bool
    """Whether names begin with the part; otherwise it is somewhere inside."""
    stored: tuple[str, ...]
    """Names in the checkpoint."""
    parameters: tuple[str, ...]
    """The model's names, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """Two parameters that are one where the config ties them."""

    name: str
    """The one that the tie replaces: ``lm_head.weight``."""
    source: str
    """The one used for both: ``model.embed_tokens.weight``."""
