"""Mechanisms of whole segments, remembered by structure: all layers of a kind are built alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.measure.blame.graph import Graph, SegmentRole
from precheck.measure.watch.reduce import MASK_SENTINEL
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.measure.watch.segment import OpNode, Segment

_HALVES = frozenset(torch_dtype(dtype) for dtype in Dtype if dtype.is_half)


class Classifier:
    """Says why operations would overflow; asks the graph once for each structure."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], list[Mechanism | None]] = {}

    def mechanism(
        self, node: OpNode, segment: Segment, reference: Segment | None, position: SegmentRole
    ) -> Mechanism:
        """Why ``node`` of ``segment`` overflowed.

        The reference's segment decides where it has the operation: its masks are recognisable.
        """
        if reference is not None and not node.is_cast:
            for match in reference.nodes:
                if match.key == node.key and not match.is_cast:
                    return self._all(reference, position)[match.index] or Mechanism.OTHER
        return self._all(segment, position)[node.index] or Mechanism.OTHER

    def peaks(
        self, segment: Segment, reference: Segment, position: SegmentRole
    ) -> Iterator[tuple[OpNode, float, Mechanism]]:
        """Operations that ran in 16 bits, the float32 magnitude each had to hold, and why.

        Constants, masks and what ran in float32 are left out. A narrowing cast has to hold what
        it was given.
        """
        known = {node.key: node for node in reference.nodes if not node.is_cast}
        for node in segment.nodes:
            if node.dtype not in _HALVES or node.minimum is None:
                continue
            if node.is_cast:
                yield from self._cast_peak(node, segment, known, position)
                continue
            match = known.get(node.key)
            if match is None or match.shape != node.shape or match.abs_max is None:
                continue
            mechanism = self._all(reference, position)[match.index]
            if mechanism is not None:
                yield match, _needed(node, match.abs_max), mechanism

    def _cast_peak(
        self,
        node: OpNode,
        segment: Segment,
        known: dict[tuple[str, str, int], OpNode],
        position: SegmentRole,
    ) -> Iterator[tuple[OpNode, float, Mechanism]]:
        origin = node.inputs[0].node
        given = segment.nodes[origin] if origin >= 0 else None
        if given is None or given.dtype is not torch.float32:
            return
        match = known.get(given.key)
        mechanism = self._all(segment, position)[node.index]
        if match is not None and match.abs_max is not None and mechanism is not None:
            yield node, match.abs_max, mechanism

    def _all(self, segment: Segment, position: SegmentRole) -> list[Mechanism | None]:
        """The mechanism of every operation; None for constants."""
        signature = _signature(segment, position)
        if signature not in self._known:
            graph = Graph(nodes=segment.nodes, position=position)
            self._known[signature] = [
                graph.classify(node) if graph.is_activation(node) else None
                for node in segment.nodes
            ]
        return self._known[signature]


def _needed(node: OpNode, reference_abs_max: float) -> float:
    """What an operation has to hold: the reference's value, unless it plainly computes another.

    An epsilon of the dtype (``x / norm.clamp_min(finfo.eps)`` with a norm of zero) makes float32
    larger than anything that float16 holds, and float16 finite.
    """
    assert node.dtype is not None  # noqa: S101  of 16 bits
    own = node.abs_max
    does_not_fit = reference_abs_max > torch.finfo(node.dtype).max
    return own if does_not_fit and own is not None else reference_abs_max


def _signature(segment: Segment, position: SegmentRole) -> tuple[object, ...]:
    """What the graph reads: equal for segments of one structure, whichever layer it is."""
    first = segment.nodes[0].module if segment.nodes else ""
    names: dict[str, int] = {first: 0}
    return (
        position,
        tuple(
            (
                names.setdefault(node.module, len(names)),
                node.op,
                node.inputs,
                node.has_mask_scalar,
                node.minimum is not None and node.minimum <= MASK_SENTINEL,
            )
            for node in segment.nodes
        ),
    )
