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

LENGTHS = (5, 7)
"""Tokens of both texts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracedForward:
    """The data flow for a text of any length."""

    flow: Flow
    grows: Mapping[Value, frozenset[int]]
    """Of each tensor, the dimensions that are longer for a longer text."""
    varies: frozenset[int]
    """Operations, by their place, that take other rows of their input then."""


def trace_any_length(skeleton: Skeleton, *, like: TracedForward | None = None) -> TracedForward:
    """The data flow of a run's forward over text.

    Args:
        skeleton: the run.
        like: the flow of a run that differs in its dtype only. Where both have the same operations
            over the same shapes, a longer text changes the same in both, and is not traced again.

    Raises:
        UntraceableError: it cannot be traced, or has other operations for a longer text.
    """
    short = _flow(skeleton, LENGTHS[0])
    if like is not None and _shapes(short) == _shapes(like.flow):
        tensors = zip(_tensors(short), _tensors(like.flow), strict=True)
        grows = {value: like.grows[other] for value, other in tensors}
        return TracedForward(flow=short, grows=grows, varies=like.varies)
    long = _flow(skeleton, LENGTHS[1])
    if [op.key for op in short.ops] != [op.key for op in long.ops]:
        raise UntraceableError("a longer text takes other operations")
    grows = {
        value: frozenset(
            dim
            for dim, sizes in enumerate(zip(value.shape, longer.shape, strict=True))
            if sizes[0] != sizes[1]
        )
        for value, longer in zip(_tensors(short), _tensors(long), strict=True)
    }
    varies = {
        place
        for place, (op, other) in enumerate(zip(short.ops, long.ops, strict=True))
        if _numbers(op) != _numbers(other) or any(grows[value] for value in op.outputs)
    }
    return TracedForward(flow=short, grows=grows, varies=frozenset(varies))


def _flow(skeleton: Skeleton, length: int) -> Flow:
    own = skeleton.another()
    return trace_flow(own, [text_batch(own, length=length)])


def _tensors(flow: Flow) -> list[Value]:
    return [value for op in flow.ops for value in (*op.inputs, *op.outputs)]


def _shapes(flow: Flow) -> list[object]:
    """The operations of a flow, and the shapes of what each reads and returns."""
    return [(op.key, [value.shape for value in (*op.inputs, *op.outputs)]) for op in flow.ops]


def _numbers(op: FlowOp) -> list[object]:
    return [leaf for leaf in leaves((op.args, op.kwargs)) if isinstance(leaf, int | float | str)]
