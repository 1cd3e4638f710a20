"""Which operations a product multiplies, and which tokens make each lane of them large.

**Idea.** A gated product leaves float16 where both factors of one lane are large, and often no
token alone makes both. The largest product that two tokens could give in a lane is about that of
the largest factors that single tokens gave there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.measure.probes.batch import Batch
from precheck.measure.watch.op_kinds import MULTIPLIES
from precheck.measure.watch.ops import OpWatcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from precheck.measure.hunt.evaluator import Evaluator
    from precheck.measure.watch.segment import OpNode

MOST_PRODUCTS = 48
"""Of which lanes are kept: a number and a token for each lane of both factors."""
NUM_LANES = 64
"""Of each product, those with the largest potential."""


@dataclass(slots=True, eq=False)
class LaneTable:
    """The largest magnitude in each lane of an operation, and the token that gave it."""

    largest: Tensor
    """``(lanes,)`` float32."""
    tokens: Tensor
    """``(lanes,)`` int64."""

    @classmethod
    def empty(cls, num_lanes: int) -> LaneTable:
        """Of an operation that has not run yet."""
        return cls(torch.zeros(num_lanes), torch.zeros(num_lanes, dtype=torch.long))

    def add(self, lanes: Tensor, tokens: Tensor) -> None:
        """Adds rows ``(rows, lanes)`` float32, and the token of each ``(rows,)``."""
        largest, rows = lanes.cpu().max(dim=0)
        is_larger = largest > self.largest
        self.largest = torch.where(is_larger, largest, self.largest)
        self.tokens = torch.where(is_larger, tokens[rows], self.tokens)


@dataclass(slots=True, eq=False)
class Factors:
    """The factors of products, by the numbers of targets.

    Args:
        of: by product, its two factors.
    """

    of: Mapping[int, tuple[int, int]]
    tables: dict[int, LaneTable] = field(default_factory=dict)
    """By factor."""

    def numbers(self, products: Sequence[int]) -> tuple[int, ...]:
        """The factors of the first products among some targets."""
        chosen = [number for number in products if number in self.of][:MOST_PRODUCTS]
        return tuple(dict.fromkeys(factor for number in chosen for factor in self.of[number]))

    def add(self, lanes: Mapping[int, Tensor], tokens: Tensor) -> None:
        """Adds the lanes of a batch whose rows are about one token each."""
        for number, values in lanes.items():
            table = self.tables.setdefault(number, LaneTable.empty(values.shape[1]))
            table.add(values, tokens)

    def lanes(self, product: int) -> list[int]:
        """The lanes of a product with the largest potential, the largest first."""
        tables = self._tables_of(product)
        if tables is None:
            return []
        potential = tables[0].largest * tables[1].largest
        return potential.topk(min(NUM_LANES, len(potential))).indices.tolist()

    def pairs(self, product: int) -> Iterator[tuple[int, int]]:
        """For each of those lanes the tokens that make its factors largest."""
        tables = self._tables_of(product)
        if tables is not None:
            for lane in self.lanes(product):
                yield int(tables[0].tokens[lane]), int(tables[1].tokens[lane])

    def _tables_of(self, product: int) -> tuple[LaneTable, LaneTable] | None:
        first, second = (self.tables.get(number) for number in self.of.get(product, (-1, -1)))
        if first is None or second is None or len(first.largest) != len(second.largest):
            return None
        return first, second


def find_factors(evaluator: Evaluator, rows: Tensor) -> Factors:
    """The factors of every product among the targets, from one watched forward.

    Args:
        evaluator: its model is run.
        rows: token ids ``(rows, seq)`` int64.
    """
    nodes = _nodes(evaluator, rows)
    numbers = {target.key: number for number, target in enumerate(evaluator.targets)}
    found: dict[int, tuple[int, int]] = {}
    for node in nodes:
        number = numbers.get(node.key)
        if number is None or node.op not in MULTIPLIES or node.is_cast:
            continue
        made = [nodes[origin.node] for origin in node.inputs[:2] if origin.node >= 0]
        factors = [
            numbers[one.key]
            for one in made
            if one.key in numbers and one.shape[-1:] == node.shape[-1:]
        ]
        if len(factors) == 2:  # noqa: PLR2004  the others multiply by a weight or a number
            found[number] = (factors[0], factors[1])
    return Factors(found)


def _nodes(evaluator: Evaluator, rows: Tensor) -> list[OpNode]:
    """The operations of a forward, as a scan's watcher records them."""
    batch = Batch(probes=(), input_ids=rows)
    watcher = OpWatcher(
        stack=evaluator.stack,
        parameters=evaluator.skeleton.parameters,
        real_tokens=batch.real_tokens,
        check=lambda: None,
    )
    with torch.no_grad(), watcher:
        evaluator.skeleton.model(**evaluator.inputs(rows))
    return watcher.segment.nodes
