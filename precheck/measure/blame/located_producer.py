"""What the watch of a run finds: producers with their location, mechanism and probes."""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from precheck.measure.watch.trees import mapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from precheck.measure.blame.examine import Producer
    from precheck.measure.blame.unit_call import UnitCall
    from precheck.records.mechanism import Mechanism
    from precheck.records.traces import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a segment stands in the model: the report's layer and section."""

    order: int
    """Counts segments through the forward; the same for every batch."""
    layer: int | None
    section: Section


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocatedProducer:
    """A producer, where it stands in the model and why it overflowed."""

    producer: Producer
    location: Location
    mechanism: Mechanism
    probes: tuple[str, ...]
    first_positions: dict[str, int]
    """By probe, the first real token that is hit."""
    entry: Entry | None = None
    """How its unit was called, if a capsule was requested."""

    @property
    def code(self) -> str:
        """The text of its line, stripped."""
        node = self.producer.node
        return linecache.getline(node.filename, node.line).strip()

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes one row of the report."""
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
        """The first of ``rows`` alone, on the CPU; the whole batch where no row is known."""
        hidden = call.hidden_states
        num_rows = None if hidden is None or hidden.dim() < 3 or not rows else hidden.shape[0]  # noqa: PLR2004

        def row_on_cpu(tensor: Tensor) -> Tensor:
            if num_rows is not None and tensor.dim() and tensor.shape[0] == num_rows:
                tensor = tensor[rows[0] : rows[0] + 1]
            return tensor.detach().cpu().clone().contiguous()

        return cls(
            unit=call.unit.name,
            args=mapped(call.args, row_on_cpu),
            kwargs=mapped(call.kwargs, row_on_cpu),
            modules=frozenset(modules),
        )
