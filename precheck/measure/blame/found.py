"""What was found while a run was watched: a producer, and where it stands."""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.measure.blame.examine import Producer
    from precheck.records.mechanism import Mechanism
    from precheck.records.traces import Section

from typing import TYPE_CHECKING, Any

from precheck.measure.watch.trees import mapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from precheck.measure.blame.unit_call import UnitCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a segment stands: its unit and what the report calls it."""

    order: int
    """Counts segments through the forward; the same for every batch."""
    layer: int | None
    section: Section


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocatedProducer:
    """A producer, where it stands and why it happened."""

    producer: Producer
    place: Location
    mechanism: Mechanism
    probes: tuple[str, ...]
    first_positions: dict[str, int]
    """By probe, where its real tokens are first hit."""
    entry: Entry | None = None
    """How its unit was called, where a capsule was asked for."""

    @property
    def code(self) -> str:
        """The text of its line, stripped."""
        node = self.producer.node
        return linecache.getline(node.filename, node.line).strip()

    @property
    def key(self) -> tuple[str, str, str]:
        """One row of the report."""
        node = self.producer.node
        return (node.module, node.op, node.source)


MOST_ENTRIES = 32
"""Overflows of a run whose arguments are kept: the first that is not absorbed is among them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """How a unit was called when something in it overflowed."""

    unit: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modules: frozenset[str]
    """Those that had run until then."""

    @classmethod
    def of(cls, call: UnitCall, *, rows: Sequence[int], modules: Iterable[str]) -> Entry:
        """One row of the batch, on the CPU; all rows where it is not known in which it happened."""
        hidden = call.hidden_states
        size = None if hidden is None or hidden.dim() < 3 or not rows else hidden.shape[0]  # noqa: PLR2004

        def kept(tensor: Tensor) -> Tensor:
            if size is not None and tensor.dim() and tensor.shape[0] == size:
                tensor = tensor[rows[0] : rows[0] + 1]
            return tensor.detach().cpu().clone().contiguous()

        return cls(
            unit=call.unit.name,
            args=mapped(call.args, kept),
            kwargs=mapped(call.kwargs, kept),
            modules=frozenset(modules),
        )
