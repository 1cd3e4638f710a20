"""Everything that the findings about a server are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from precheck.served.compared import Compared, compare

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.served import (
        Answer,
        ConfigurationDistance,
        Fingerprint,
        Server,
    )
    from precheck.served.questions import Tokens
    from precheck.served.readings import Reading
    from precheck.served.tokenization import ReadText


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A server's answers, and what every run says of them."""

    server: Server
    tokens: Tokens
    max_context: int | None
    """Of the checkpoint."""
    written: tuple[Answer, ...]
    """To prompts that were sent alone, one after the other."""
    answers: tuple[Answer, ...]
    """The same up to the last position that can be compared."""
    in_company: tuple[Answer, ...]
    """To the same, sent again and several at once; empty if they were not."""
    is_saved: bool
    """The runs were saved by a scan: no other can be compared with."""
    read_texts: tuple[ReadText, ...]
    """How the server tokenized texts."""
    readings: Mapping[Configuration, Mapping[str, Reading]]
    rows: tuple[ConfigurationDistance, ...]
    fingerprint: Fingerprint

    @property
    def is_told(self) -> bool:
        """Whether the server tells log-probabilities."""
        return any(answer.places for answer in self.answers)

    @property
    def fits(self) -> bool:
        """Whether a measured configuration explains the server."""
        return bool(self.fingerprint.like)

    @property
    def nearest(self) -> ConfigurationDistance | None:
        """The distance to the nearest configuration."""
        index = self.fingerprint.nearest
        return None if index is None else self.rows[index]

    @cached_property
    def compared(self) -> dict[str, Compared]:
        """Each told answer next to the nearest configuration; empty without one."""
        nearest = self.nearest
        if nearest is None:
            return {}
        own = self.readings[nearest.configuration]
        reference = self.readings[nearest.configuration.reference]
        return {
            answer.name: compare(answer, own[answer.name], reference[answer.name])
            for answer in self.told_answers
            if answer.name in own
        }

    @property
    def told_answers(self) -> Iterator[Answer]:
        """Those with log-probabilities."""
        return (answer for answer in self.answers if answer.places)

    def reading(self, answer: Answer) -> Reading | None:
        """What the nearest configuration says at the positions of an answer."""
        nearest = self.nearest
        return None if nearest is None else self.readings[nearest.configuration].get(answer.name)

    @property
    def noise(self) -> float:
        """Nats that a server like the nearest configuration may differ by."""
        nearest = self.nearest
        return 0.0 if nearest is None or nearest.expected is None else nearest.expected

    def mean_divergence(self, *, decoded: bool | None = None) -> float | None:
        """Of the server from the nearest configuration, over all positions; None without any.

        Args:
            decoded: only positions that attend to generated tokens, or only others; None: all.
        """
        parts = []
        for each in self.compared.values():
            first = each.num_prefill if decoded else 0
            last = each.num_prefill if decoded is False else None
            parts.append(each.divergence[first:last])
        values = np.concatenate(parts) if parts else np.empty(0)
        values = values[np.isfinite(values)]
        return float(values.mean()) if values.size else None
