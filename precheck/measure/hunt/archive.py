"""The best inputs so far: for each operation, those that made it largest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from precheck.measure.hunt.text_space import Ids
    from precheck.records.outcomes.hunt import Picture

KEPT = 8
"""Inputs kept for each operation."""
_CLEARLY = 1.0001
"""Times the least value that is kept: less than that is rounding, and not worth a place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Catch:
    """An input, and how large it made an operation in float32."""

    value: float
    ids: Ids
    text: str | None
    """None where the ids are no text."""
    found_by: str
    """Which part of the search it is from."""
    picture: Picture | None = None
    """The image that the text asks about."""


@dataclass(slots=True, eq=False)
class Archive:
    """The largest values of each target, the best first; texts apart from mere token ids.

    Args:
        num_targets: how many there are.
    """

    num_targets: int
    texts: list[list[Catch]] = field(init=False)
    token_ids: list[list[Catch]] = field(init=False)
    """Inputs that are no texts."""
    images: list[list[Catch]] = field(init=False)
    """Texts about an image."""

    def __post_init__(self) -> None:
        self.texts = [[] for _ in range(self.num_targets)]
        self.token_ids = [[] for _ in range(self.num_targets)]
        self.images = [[] for _ in range(self.num_targets)]

    def least(self, *, is_text: bool) -> Tensor:
        """By target, the value that an input has to exceed to be kept, ``(targets,)`` float32."""
        kept = self.texts if is_text else self.token_ids
        least = [catches[-1].value if len(catches) == KEPT else 0.0 for catches in kept]
        return torch.tensor(least) * _CLEARLY

    def add(self, number: int, catch: Catch) -> None:
        """Keeps an input for a target, if it is among the best and not there yet."""
        if catch.picture is not None:
            kept = self.images[number]
        else:
            kept = (self.token_ids if catch.text is None else self.texts)[number]
        if any((other.ids, other.picture) == (catch.ids, catch.picture) for other in kept):
            return
        kept.append(catch)
        kept.sort(key=lambda other: (-other.value, len(other.ids), other.ids))
        del kept[KEPT:]

    def best(self, number: int, *, any_ids: bool = False) -> Catch | None:
        """The best text of a target, alone or about an image; ``any_ids``: the best of all."""
        catches = [*self.texts[number][:1], *self.images[number][:1]]
        catches += self.token_ids[number][:1] if any_ids else []
        return max(catches, key=lambda catch: catch.value, default=None)

    def values(self, *, any_ids: bool = False) -> list[float]:
        """The best value of every target."""
        best = [self.best(number, any_ids=any_ids) for number in range(self.num_targets)]
        return [0.0 if catch is None else catch.value for catch in best]

    def elites(self, numbers: Sequence[int]) -> list[Ids]:
        """The ids that are kept for some targets, without images, once, the best of each first."""
        found: dict[Ids, None] = {}
        for place in range(KEPT):
            for number in numbers:
                for kept in (self.texts[number], self.token_ids[number]):
                    if place < len(kept):
                        found.setdefault(kept[place].ids)
        return list(found)
