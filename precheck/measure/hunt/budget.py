"""How long a search may go on, and how it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class PartOverError(Exception):
    """A part of the search has used its share."""


class SearchOverError(Exception):
    """The search has used its time, or found what it was to find."""


@dataclass(slots=True, kw_only=True)
class Budget:
    """How long a search may go on: in time, in tokens, or both."""

    seconds: float
    most_tokens: int | None = None
    """Run through the model; the same inputs on any machine."""
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)
    seconds_before: float = 0.0
    tokens_before: int = 0
    """What the search had used before it was resumed: it does not count against the budget."""

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def spent(self) -> float:
        """Seconds of the search so far, with those before it was resumed."""
        return self.clock() - self.started + self.seconds_before

    def share(self, num_tokens: int) -> float:
        """How much of it is used, 0 to 1 and beyond."""
        tokens = num_tokens - self.tokens_before
        by_tokens = tokens / self.most_tokens if self.most_tokens else 0.0
        return max(by_tokens, (self.spent - self.seconds_before) / self.seconds)
