"""What holds for every prompt: upper bounds, and which operations they prove."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ProofStatus(StrEnum):
    """What is known of an operation in a dtype, over all inputs."""

    PROVED = "proved"
    """Given finite inputs it cannot overflow: an upper bound fits into the dtype."""
    REFUTED = "refuted"
    """A real input is known whose value does not fit."""
    OPEN = "open"
    """Neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOperation:
    """An operation of a run that is not proved."""

    module: str
    op: str
    source: str
    """Base name of the file and line."""
    bound_abs_max: float | None
    """What no input exceeds; None where nothing is known."""


MOST_OPEN = 64
"""Rows of ``RunProof.open_operations``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProof:
    """What is proved of one run, over all inputs."""

    num_operations: int
    """Operations of the traced forward that compute floating-point values."""
    num_proved: int
    open_operations: tuple[OpenOperation, ...] = ()
    """The first ``MOST_OPEN`` of the others, in the order of the forward."""
    assumptions: tuple[str, ...] = ()
    """What the bounds take for granted, in words."""
    failure: str | None = None
    """Why nothing is proved: the forward cannot be traced, or bounding it failed."""

    @property
    def holds_for_every_prompt(self) -> bool:
        """Whether no operation can overflow, whatever the input.

        >>> RunProof(num_operations=7, num_proved=7).holds_for_every_prompt
        True
        >>> RunProof(num_operations=0, num_proved=0).holds_for_every_prompt
        False
        """
        return self.failure is None and 0 < self.num_operations == self.num_proved
