"""The figures of one run by position: how they change with the distance from the first token."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from precheck.measure.lockstep.figures.layers import Mean
from precheck.records.outcomes.positions import PositionFigures, bucket_edges, columns_by_bucket

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from precheck.records.mechanism import Mechanism


@dataclass(slots=True)
class PositionTotals:
    """Figures of the buckets of one text, of which parts may be added one after the other."""

    num_tokens: int
    """Of the whole text."""
    kl: dict[int, Mean] = field(default_factory=dict)
    """By the bucket's number, as everything here."""
    agreement: dict[int, Mean] = field(default_factory=dict)
    largest: dict[tuple[int, Mechanism], float] = field(default_factory=dict)

    def add_tokens(
        self, first: int, kl: Tensor, agrees: Tensor, same_routing: Tensor | None
    ) -> None:
        """Adds successive tokens.

        Args:
            first: the position of the first of them.
            kl: of each, ``(tokens,)`` float64, nats; those that are not finite do not count.
            agrees: whether the first choice is the reference's, ``(tokens,)`` bool.
            same_routing: whether a token went to the reference's experts, ``(tokens,)`` bool.
        """
        for bucket, part in columns_by_bucket(self.num_tokens, first=first, count=kl.shape[0]):
            is_finite = kl[part].isfinite()
            keep = is_finite if same_routing is None else is_finite & same_routing[part]
            self.kl.setdefault(bucket, Mean()).add(kl[part][keep])
            agrees_here = agrees[part][is_finite].double()
            self.agreement.setdefault(bucket, Mean()).add(agrees_here)

    def add_peaks(self, mechanism: Mechanism, by_bucket: Mapping[int, float | None]) -> None:
        """Adds how large the result of an operation is, by bucket; None where nothing is known."""
        for bucket, abs_max in by_bucket.items():
            if abs_max is not None:
                key = (bucket, mechanism)
                self.largest[key] = max(abs_max, self.largest.get(key, 0.0))

    def merge(self, other: PositionTotals) -> PositionTotals:
        """The figures of both parts of a text."""
        both = PositionTotals(self.num_tokens, dict(self.kl), dict(self.agreement))
        for mine, others in ((both.kl, other.kl), (both.agreement, other.agreement)):
            for bucket, mean in others.items():
                mine[bucket] = mine[bucket].merge(mean) if bucket in mine else mean
        both.largest = dict(self.largest)
        for key, abs_max in other.largest.items():
            both.largest[key] = max(abs_max, both.largest.get(key, 0.0))
        return both

    @property
    def figures(self) -> tuple[PositionFigures, ...]:
        """The buckets as the report holds them."""
        return tuple(
            PositionFigures(
                start=start,
                end=end,
                kl_divergence=self.kl.get(bucket, Mean()).value,
                top1_agreement=self.agreement.get(bucket, Mean()).value,
                abs_max={
                    mechanism.value: abs_max
                    for (of_bucket, mechanism), abs_max in sorted(self.largest.items())
                    if of_bucket == bucket
                },
            )
            for bucket, (start, end) in enumerate(pairwise(bucket_edges(self.num_tokens)))
        )
