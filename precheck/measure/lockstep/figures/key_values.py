"""The largest queries, keys and values of every attention, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.records.sizes import KeyBias, KeyValueRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from precheck.measure.blame.attention_operands import AttentionOperands
    from precheck.measure.blame.located_producer import Location
    from precheck.measure.watch.segment import OpNode


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """One attention of the model: the layer, and where it is in it."""

    location: Location
    module: str
    number: int
    """Of those that the layer has."""


@dataclass(slots=True, kw_only=True)
class _Largest:
    """Largest magnitudes of one attention."""

    operands: AttentionOperands
    projection: str | None
    """The module that projects the keys."""
    query: float | None
    key: float | None
    projected_key: float | None
    value: float | None

    def merge(self, other: _Largest) -> _Largest:
        """The largest in both sets of batches."""
        return _Largest(
            operands=self.operands,
            projection=self.projection,
            query=_largest((self.query, other.query)),
            key=_largest((self.key, other.key)),
            projected_key=_largest((self.projected_key, other.projected_key)),
            value=_largest((self.value, other.value)),
        )


@dataclass(slots=True)
class KeyValueTotals:
    """What the attentions of a float32 run read."""

    found: dict[_Attention, _Largest] = field(default_factory=dict)

    def add(
        self, operands: Iterable[AttentionOperands], nodes: list[OpNode], *, location: Location
    ) -> None:
        """Adds the attentions of a segment, whose operations are ``nodes``."""
        for number, each in enumerate(operands):
            attention = _Attention(
                location=location, module=nodes[each.scores].module, number=number
            )
            self._keep_larger(attention, _largest_of(each, nodes))

    def merge(self, other: KeyValueTotals) -> KeyValueTotals:
        """What both sets of batches, or runs, found."""
        both = KeyValueTotals(dict(self.found))
        for attention, largest in other.found.items():
            both._keep_larger(attention, largest)
        return both

    def _keep_larger(self, attention: _Attention, largest: _Largest) -> None:
        known = self.found.get(attention)
        self.found[attention] = largest if known is None else known.merge(largest)

    def rows(self, vector: Callable[[str], Tensor | None]) -> tuple[KeyValueRange, ...]:
        """A row for each attention, in model order.

        Args:
            vector: a parameter of one dimension, by its name; None if there is none.
        """
        in_order = sorted(
            self.found.items(), key=lambda pair: (pair[0].location.order, pair[0].number)
        )
        return tuple(_row(attention, largest, vector) for attention, largest in in_order)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _largest_of(operands: AttentionOperands, nodes: list[OpNode]) -> _Largest:
    def largest(indices: Iterable[int]) -> float | None:
        return _largest(nodes[index].abs_max for index in indices)

    projection = operands.projection
    is_whole = projection is not None and projection.is_whole
    return _Largest(
        operands=operands,
        projection=None if projection is None else nodes[projection.index].module,
        query=largest(operands.query),
        key=largest(operands.key),
        projected_key=largest([projection.index] if projection and is_whole else []),
        value=largest(operands.value),
    )


def _row(
    attention: _Attention, largest: _Largest, vector: Callable[[str], Tensor | None]
) -> KeyValueRange:
    operands = largest.operands
    return KeyValueRange(
        layer=attention.location.layer,
        section=attention.location.section,
        module=attention.module,
        query=largest.query,
        projected_key=largest.projected_key,
        key=largest.key,
        value=largest.value,
        head_dim=operands.head_dim,
        is_key_normalised=operands.is_key_normalised,
        key_bias=_bias(largest, vector),
    )


def _bias(largest: _Largest, vector: Callable[[str], Tensor | None]) -> KeyBias | None:
    projection = largest.operands.projection
    if projection is None or largest.projection is None:
        return None
    name = f"{largest.projection}.bias"
    bias = vector(name)
    if bias is None:
        return None
    of_keys = torch.cat([bias[columns] for columns in projection.columns])
    head_dim = largest.operands.head_dim
    by_head = of_keys.unflatten(0, (-1, head_dim)) if head_dim else None
    return KeyBias(
        name=name,
        abs_max=float(of_keys.abs().max()),
        norm=float(of_keys.norm()),
        head_norm=None if by_head is None else float(by_head.norm(dim=-1).max()),
    )
