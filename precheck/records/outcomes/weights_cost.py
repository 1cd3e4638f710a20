"""What other weights of the same model cost: both run in float32, and were compared."""

from __future__ import annotations

from dataclasses import dataclass

from precheck.records.traces import RunTrace


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighedModel:
    """One of the two."""

    id: str
    """As the user called it."""
    stored_as: tuple[str, ...]
    """Dtypes and types of blocks, the one with most elements first."""
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsCost:
    """The figures of one model against another with the same architecture."""

    reference: WeighedModel
    other: WeighedModel
    num_probes: int
    num_tokens: int
    run: RunTrace
    """The other's float32 run; errors of its layers, and its scores, are against the reference."""
    retokenised: tuple[str, ...] = ()
    """Built-in texts that the other's own tokenizer splits into other tokens."""
    has_no_tokenizer: bool = False
    """The other has none, or none that works: nothing was compared."""
    too_much: bool = False
    """Whether the scores differ by more than a format may cost."""
