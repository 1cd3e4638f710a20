"""Bounds of decoder layers from small tensors: attention scores, and the residual stream.

A norm resets what it reads: whatever that was, ``sqrt(n)`` times its weight bounds its result. So
norms of queries and keys bound the scores, and norms of what a layer's sub-blocks return bound what
the layer adds to the residual stream. The rules are those of ``precheck.measure.bounds``, over the
operations that lead there from parameters that are at hand; all else is finite, and unknown. One
layer of each kind is traced, and bounded with the numbers of each layer that it stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch

from precheck.measure.bounds.forms import Image, Rotated
from precheck.measure.bounds.interpreter import Interpreter
from precheck.measure.bounds.rounding import largest, unit_roundoff
from precheck.measure.trace.flow import Flow
from precheck.measure.trace.stream import leading_to
from precheck.records.outcomes.layer_bounds import LayerBound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from precheck.measure.bounds.forms import Known
    from precheck.measure.static.traced_layers import TracedLayers
    from precheck.measure.trace.flow import FlowOp, Value
    from precheck.measure.trace.stream import TracedLayer

_T = TypeVar("_T")


class _Found(NamedTuple):
    """What one layer comes to."""

    scores: float | None = None
    scaled: float | None = None
    added: Tensor | None = None
    """To each channel, float64."""
    num_added: int = 0


def layer_bounds(traced: TracedLayers, numbers: Mapping[str, Tensor]) -> tuple[LayerBound, ...]:
    """A row for each decoder layer of which something is bounded; empty where nothing is.

    Args:
        traced: the layers of a model in float16.
        numbers: parameters that are at hand, by the model's names.
    """
    return _Bounds(traced, numbers).rows()


class _Bounds:
    """The traced layers, and the numbers of those that they stand for."""

    def __init__(self, traced: TracedLayers, numbers: Mapping[str, Tensor]) -> None:
        self._short = traced.short
        self._traced = traced.forward
        self._layers = traced.path
        self._numbers = numbers
        self._dtypes = {name: each.dtype for name, each in self._short.model.named_parameters()}
        self._buffers = dict(self._short.model.named_buffers())
        self._traces = traced.layers

    def rows(self) -> tuple[LayerBound, ...]:
        """In the order of the layers."""
        found: dict[int, _Found] = {}
        for trace, indices in zip(self._traces, self._short.members, strict=True):
            found |= self._of_kind(trace, indices)
        return tuple(self._added_up(found))

    def _of_kind(self, trace: TracedLayer, indices: Sequence[int]) -> dict[int, _Found]:
        """Of the layers that a traced one stands for."""
        asked = [
            *(score.place for score in trace.scores),
            *(branch.place for branch in trace.branches),
        ]
        places = self._leading_to(asked, trace, indices[0])
        if places == sorted(asked):
            return {}  # of nothing that leads there anything is known
        found = {}
        for index in indices:
            interpreter = self._interpreter(places, trace, index)
            found[index] = _walk(interpreter, self._traced.flow, places, trace)
            if found[index].scores is None and found[index].added is None:
                break  # the others are built alike
        return found

    def _added_up(self, found: Mapping[int, _Found]) -> Iterator[LayerBound]:
        total, num_added = self._embedding(), 0
        so_far: Tensor | None = torch.zeros((), dtype=torch.float64)
        if not self._is_one_stream:
            so_far = None
        for index in sorted(index for indices in self._short.members for index in indices):
            each = found.get(index, _Found())
            num_added += each.num_added
            grown = (1 + unit_roundoff(torch.float16)) ** num_added
            so_far = None if so_far is None or each.added is None else so_far + each.added
            row = LayerBound(
                layer=index,
                scores=each.scores,
                scaled_scores=each.scaled,
                added=_largest(each.added),
                added_so_far=_largest(so_far, grown),
                residual=None if total is None else _largest(so_far, grown, total),
            )
            if row != LayerBound(layer=index):
                yield row

    @property
    def _is_one_stream(self) -> bool:
        """Whether each layer adds to what the one before it returns."""
        pairs = zip(self._traces, self._traces[1:], strict=False)
        return all(
            later.stream is not None and later.stream in earlier.carried for earlier, later in pairs
        )

    def _embedding(self) -> Tensor | None:
        """What the residual stream is before the first layer, by channel; None: not known."""
        stream, flow = self._traces[0].stream, self._traced.flow
        place = next((place for place, op in enumerate(flow.ops) if stream in op.inputs), None)
        if stream is None or place is None:
            return None
        places = self._leading_to([place], None, 0)
        interpreter = self._interpreter(places, None, 0)
        interpreter.advance(len(places) - 1)
        bound = _by_channel(interpreter.known_of(stream))
        return bound if float(bound.max()) < largest(stream.dtype) else None

    def _leading_to(
        self, places: Sequence[int], trace: TracedLayer | None, index: int
    ) -> list[int]:
        numbers_of = self._reader(trace, index)
        names = {
            name
            for op in self._traced.flow.ops
            for value in op.inputs
            if (name := value.parameter or value.buffer) is not None
        }
        return leading_to(
            self._traced.flow,
            places,
            unknown={name for name in names if numbers_of(name) is None},
            ends={value for each in self._traces for value in (each.stream, *each.carried) if value}
            if trace
            else (),
        )

    def _interpreter(
        self, places: Sequence[int], trace: TracedLayer | None, index: int
    ) -> Interpreter:
        varies = self._traced.varies
        return Interpreter(
            Flow(ops=tuple(self._traced.flow.ops[place] for place in places), results=()),
            grows=self._traced.grows,
            varies=frozenset(number for number, place in enumerate(places) if place in varies),
            numbers_of=self._reader(trace, index),
        )

    def _reader(self, trace: TracedLayer | None, index: int) -> Callable[[str], Tensor | None]:
        """What reads parameters as if the traced layer were one of the others."""

        def numbers_of(name: str) -> Tensor | None:
            if name in self._buffers:
                buffer = self._buffers[name]
                return None if buffer.is_meta else buffer
            stored = name
            if trace is not None and name.startswith(f"{trace.path}."):
                stored = f"{self._layers}.{index}{name.removeprefix(trace.path)}"
            found = self._numbers.get(stored)
            return None if found is None else found.to(self._dtypes[name])

        return numbers_of


def _walk(
    interpreter: Interpreter, flow: Flow, places: Sequence[int], trace: TracedLayer
) -> _Found:
    """What is known where scores are computed, and where something is added to the stream."""
    scores: list[float | None] = []
    scaled: list[float] = []
    added: list[Tensor | None] = []
    scalings = {score.place: abs(score.scaling) for score in trace.scores}
    branches = {branch.place: branch.added for branch in trace.branches}
    for number, place in enumerate(places):
        if place in scalings:
            interpreter.advance(number)
            operands = [interpreter.known_of(value) for value in _operands(flow.ops[place])]
            interpreter.advance(number + 1)
            is_bounded = all(isinstance(each.form, Image | Rotated) for each in operands)
            scores.append(interpreter.bounded[-1].bound if is_bounded else None)
            # one more rounding, of the product with the scaling
            grown = 1.0 if scalings[place] == 1 else 1 + unit_roundoff(torch.float16)
            scaled.append(interpreter.bounded[-1].bound * scalings[place] * grown)
        elif place in branches:
            interpreter.advance(number)
            known = interpreter.known_of(branches[place])
            added.append(_by_channel(known) if isinstance(known.form, Image) else None)
    return _Found(
        scores=_all_of(scores, max),
        scaled=max(scaled) if _all_of(scores, max) is not None else None,
        added=_all_of(added, _total),
        num_added=len(added),
    )


def _all_of(found: Sequence[_T | None], combined: Callable[[list[_T]], _T]) -> _T | None:
    """What all come to; None where there is none, or one of them is not known."""
    known = [each for each in found if each is not None]
    return combined(known) if known and len(known) == len(found) else None


def _operands(op: FlowOp) -> list[Value]:
    """Queries and keys, without what is added to their product."""
    return [value for value in op.inputs if value.is_number][-2:]


def _by_channel(known: Known) -> Tensor:
    return known.bound.reshape(-1, known.shape[-1]).amax(0)


def _largest(bound: Tensor | None, grown: float = 1.0, start: Tensor | float = 0.0) -> float | None:
    """Over all channels; None where it is not known or not finite."""
    if bound is None:
        return None
    found = float(((bound + start) * grown).max())
    return found if found < float("inf") else None


def _total(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum(0)
