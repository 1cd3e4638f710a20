"""What is wrong with how tensors are stored: names, shapes and ties that are not the model's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFault:
    """One stored tensor that is not what it should be, and by how much."""

    name: str
    num_elements: int
    """How many of its elements are affected."""
    abs_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFault:
    """A parameter that is stored in another shape than the model's."""

    name: str
    stored: tuple[int, ...]
    expected: tuple[int, ...]

    @property
    def is_shard(self) -> bool:
        """Whether a sharded optimizer left it so: empty, or a part of it in one flat row."""
        is_empty = 0 in self.stored and 0 not in self.expected
        return is_empty or len(self.stored) == 1 < len(self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """Parameters that are stored under other names, which differ in the same part each."""

    old: str
    """The part as it is stored, with its dot: ``_orig_mod.``; empty where it is lacking."""
    new: str
    """What the model has in its place; empty if nothing."""
    is_prefix: bool
    """Whether the part is where names begin; else it stands somewhere inside."""
    stored: tuple[str, ...]
    """Names in the checkpoint."""
    parameters: tuple[str, ...]
    """The model's names, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """Two parameters that are one where the config ties them."""

    name: str
    """The one that is given up: ``lm_head.weight``."""
    source: str
    """The one that stands for both: ``model.embed_tokens.weight``."""
