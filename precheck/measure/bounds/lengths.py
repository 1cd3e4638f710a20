"""What a longer text changes in a traced forward: two traces, compared operation by operation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.errors import UntraceableError
from precheck.measure.trace.flow import Value, leaves, text_batch, trace_flow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.trace.flow import Flow, FlowOp

_LENGTHS = (11, 13)
"""Tokens of both texts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracedForward:
    """The data flow for a text of any length."""

    flow: Flow
    grows: Mapping[Value, frozenset[int]]
    """Of each tensor, the dimensions that are longer for a longer text."""
    varies: frozenset[int]
    """Operations, by their place, that take other rows of their input then."""


def trace_any_length(skeleton: Skeleton) -> TracedForward:
    """The data flow of a run's forward over text.

    Raises:
        UntraceableError: it cannot be traced, or has other operations for a longer text.
    """
    short, long = (
        trace_flow(own, [text_batch(own, length=length)])
        for length in _LENGTHS
        for own in [skeleton.another()]
    )
    if [op.key for op in short.ops] != [op.key for op in long.ops]:
        raise UntraceableError("a longer text takes other operations")
    grows: dict[Value, frozenset[int]] = {}
    varies: set[int] = set()
    for place, (op, other) in enumerate(zip(short.ops, long.ops, strict=True)):
        for value, longer in zip(
            (*op.inputs, *op.outputs), (*other.inputs, *other.outputs), strict=True
        ):
            grows[value] = frozenset(
                dim
                for dim, sizes in enumerate(zip(value.shape, longer.shape, strict=True))
                if sizes[0] != sizes[1]
            )
        if _numbers(op) != _numbers(other) or any(grows[value] for value in op.outputs):
            varies.add(place)
    return TracedForward(flow=short, grows=grows, varies=frozenset(varies))


def _numbers(op: FlowOp) -> list[object]:
    return [leaf for leaf in leaves((op.args, op.kwargs)) if isinstance(leaf, int | float | str)]
