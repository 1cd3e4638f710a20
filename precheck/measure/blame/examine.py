"""Finds producers, element by element: what design section 2 calls an unexpected element.

The reference pass keeps a snapshot of every output: its bounds, and the tensor itself only where
it holds a mask or is not finite. The pass of the run compares each output with its snapshot at
once, and tracks which producers each tensor is tainted by. A producer has an unexpected element in
its output and none in its inputs; an operation with one in its inputs propagates it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.weak import WeakIdKeyDictionary

from precheck.measure.blame.masks import cast_reference, mask_threshold
from precheck.measure.watch.op_kinds import (
    ALLOCATIONS,
    MASK_NUMBER,
    MASK_SENTINEL,
    MASK_WRITERS,
    PRODUCTS,
    SOFTMAXES,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.measure.watch.parameters import Parameters
    from precheck.measure.watch.real_tokens import RealTokens
    from precheck.measure.watch.segment import OpNode

CLEAN: frozenset[int] = frozenset()
_FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """An output of the reference: its bounds, and its values unless all fit into every dtype."""

    shape: tuple[int, ...]
    low: float
    high: float
    values: Tensor | None

    @classmethod
    def of(cls, output: Tensor) -> Snapshot:
        """The snapshot of a floating-point tensor."""
        low, high = bounds(output)
        is_plain = low > -_FLOAT16_MAX and high < _FLOAT16_MAX
        values = None if is_plain else output.detach().clone()
        return cls(shape=tuple(output.shape), low=low, high=high, values=values)

    def abs_max(self, *, mask: float = MASK_SENTINEL) -> float | None:
        """Largest finite magnitude, without masks: values at or below ``mask``."""
        if self.values is None:
            return max(abs(self.low), abs(self.high))
        numbers = self.values[self.values.isfinite() & (self.values > mask)]
        return float(numbers.abs().max()) if numbers.numel() else None


def bounds(tensor: Tensor) -> tuple[float, float]:
    """Minimum and maximum; NaN if any element is; (0, 0) for an empty tensor."""
    if tensor.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(tensor)
    return float(low), float(high)


def unexpected(
    output: Tensor, reference: Tensor | None, *, mask: float = MASK_SENTINEL
) -> Tensor | None:
    """Which elements of ``output`` are unexpected (bool, its shape); None if none is.

    Without a ``reference`` every element is expected to be an ordinary number. At or below
    ``mask`` the reference masks.
    """
    elements = output.isfinite().logical_not_()
    if not bool(elements.any()):
        return None
    if reference is not None:
        is_mask = reference <= mask
        ordinary = reference.isfinite() & ~is_mask
        elements = (elements & ordinary) | (output.isnan() & is_mask)
    return elements if bool(elements.any()) else None


def unexpected_in(output: Tensor, reference: Tensor) -> Tensor | None:
    """The same, but the reference is only read if ``output`` is not finite."""
    low, high = bounds(output)
    if math.isfinite(low) and math.isfinite(high):
        return None
    return unexpected(output, reference)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Producer:
    """An operation that made unexpected elements."""

    identity: int
    """What tensors that carry its fault are tainted with."""
    node: OpNode
    num_elements: int
    rows: tuple[int, ...]
    """Rows of the batch it happened in; () where the output's shape does not tell."""
    positions: dict[int, int]
    """By row, the first real token at which it happened, where the shape tells."""
    reference_abs_max: float | None
    limit: float
    is_weight: bool
    """It read a weight that does not fit into the dtype."""


class ReferenceOps:
    """Snapshots of a reference segment, by the key that matches operations."""

    def __init__(self) -> None:
        self.snapshots: dict[tuple[str, str, int], Snapshot] = {}

    def before(self, tensors: list[Tensor], *, overwrites: bool) -> None:
        """Does nothing: the reference carries no taint."""

    def viewed(self, base: Tensor, views: list[Tensor]) -> None:
        """Does nothing: the operations that read a view have snapshots of their own."""

    def ran_complex(self, output: Tensor) -> None:
        """Does nothing: complex numbers are not compared."""

    def ran(self, node: OpNode, tensors: list[Tensor], output: Tensor) -> None:
        """Keeps a snapshot, except of a cast, which is compared with its own input."""
        del tensors
        if not node.is_cast and node.op not in ALLOCATIONS:
            self.snapshots[node.key] = Snapshot.of(output)


class Examiner:
    """Compares a segment of a run with its reference.

    Args:
        reference: snapshots to compare with; None judges every operation by itself (the rule for
            operations without a match).
        real_tokens: tells the rows of a batch apart.
        parameters: the run's, and which of them are faulty; they change as weights come and go.
        next_identity: returns a new identity for a producer.
    """

    def __init__(
        self,
        *,
        reference: ReferenceOps | None,
        real_tokens: RealTokens,
        parameters: Parameters,
        next_identity: Callable[[], int],
    ) -> None:
        self.is_matchable: Callable[[OpNode], bool] = lambda _: True
        """False for an operation whose rows are other tokens in the reference: an expert that
        was sent others."""
        self._producers: list[Producer] = []
        self._reference = reference
        self._real_tokens = real_tokens
        self._parameters = parameters
        self._views_of_faults: set[int] = set()
        self._next_identity = next_identity
        # weak keys: another tensor may get the identity of one that is gone
        self._taints = WeakIdKeyDictionary()
        self._storages: dict[int, frozenset[int]] = {}
        self._input_bounds: list[tuple[float, float]] | None = None
        self._input_taint = CLEAN

    def compare_with(self, reference: ReferenceOps) -> None:
        """Continues with the next segment and its reference; taints stay."""
        self._reference = reference
        self._storages.clear()

    def take_producers(self) -> list[Producer]:
        """The producers since the last call."""
        producers, self._producers = self._producers, []
        return producers

    def taint(self, tensor: Tensor, sources: frozenset[int]) -> None:
        """Marks ``tensor`` as carrying the faults of ``sources``; without any, as clean."""
        if sources:
            self._taints[tensor] = sources
        else:
            self._taints.pop(tensor, None)

    def sources(self, tensor: Tensor) -> frozenset[int]:
        """The producers whose faults ``tensor`` carries."""
        own: frozenset[int] = self._taints.get(tensor, CLEAN)
        if not self._storages:
            return own
        return own | self._storages.get(_storage(tensor), CLEAN)

    def before(self, tensors: list[Tensor], *, overwrites: bool) -> None:
        """Records the taint of the inputs, before the operation may overwrite one of them."""
        self._input_taint = CLEAN.union(*(self.sources(tensor) for tensor in tensors))
        self._input_bounds = list(map(_float_bounds, tensors)) if overwrites else None

    def viewed(self, base: Tensor, views: list[Tensor]) -> None:
        """A view of a tainted tensor is tainted."""
        sources = self.sources(base)
        for view in views:
            self.taint(view, sources)
            if self._is_faulty_weight(base):
                self._views_of_faults.add(id(view))

    def ran(self, node: OpNode, tensors: list[Tensor], output: Tensor) -> None:
        """Decides whether ``node`` is a producer, a propagator or neither."""
        is_in_place = any(output is tensor for tensor in tensors)
        if self._storages and (not is_in_place or _is_whole(output)):
            self._storages.pop(_storage(output), None)  # new memory, or all of it written again
        is_weight = any(map(self._is_faulty_weight, tensors))
        elements, reference_abs_max = None, None
        if node.op not in ALLOCATIONS:
            elements, reference_abs_max = self._unexpected(
                node, tensors, output, is_weight=is_weight
            )
        if elements is None:
            self.taint(output, CLEAN)
            self._views_of_faults.discard(id(output))
            return
        sources = self._input_taint
        if not sources:
            producer = self._producer(node, elements, reference_abs_max, is_weight=is_weight)
            self._producers.append(producer)
            sources = frozenset({producer.identity})
        self.taint(output, sources)
        if is_in_place:  # other views of the storage see it too
            storage = _storage(output)
            self._storages[storage] = self._storages.get(storage, CLEAN) | sources

    def ran_complex(self, output: Tensor) -> None:
        """Propagates taint: no complex operation counts as a producer."""
        is_broken = not bool(output.isfinite().all())
        self.taint(output, self._input_taint if is_broken else CLEAN)

    def _is_faulty_weight(self, tensor: Tensor) -> bool:
        return self._parameters.is_faulty(tensor) or id(tensor) in self._views_of_faults

    def _unexpected(
        self, node: OpNode, tensors: list[Tensor], output: Tensor, *, is_weight: bool
    ) -> tuple[Tensor | None, float | None]:
        """Unexpected elements of ``output``, and how large the reference is there."""
        low, high = bounds(output)
        if math.isfinite(low) and math.isfinite(high):
            return None, None
        if node.is_cast:
            source = tensors[0]
            reference = None if self._input_taint else cast_reference(source, output.dtype)
            return unexpected(output, reference), Snapshot.of(source).abs_max()
        snapshot = self._snapshot(node)
        if snapshot is not None:
            mask, values = MASK_SENTINEL, snapshot.values
            if not self._input_taint:
                mask = mask_threshold(node, self._input_bounds or map(_float_bounds, tensors))
            if mask == MASK_NUMBER and values is not None:
                values = -values.abs()  # it may be subtracted later
            return unexpected(output, values, mask=mask), snapshot.abs_max(mask=mask)
        if self._input_taint or is_weight or self._breaks_finite(node, tensors, low, high):
            return unexpected(output, None), None
        return None, None

    def _snapshot(self, node: OpNode) -> Snapshot | None:
        if self._reference is None or not self.is_matchable(node):
            return None
        snapshot = self._reference.snapshots.get(node.key)
        return snapshot if snapshot is not None and snapshot.shape == node.shape else None

    def _breaks_finite(self, node: OpNode, tensors: list[Tensor], low: float, high: float) -> bool:
        """The rule for an operation without a match: its inputs are finite, and it writes no mask.

        -inf is a mask if an input holds one, unless the operation is a product; NaN and +inf never
        are. A softmax may read -inf, which masks.
        """
        if node.op in MASK_WRITERS or node.has_mask_scalar or node.dtype is None:
            return False
        inputs = list(self._input_bounds or map(_float_bounds, tensors))
        if node.op in SOFTMAXES:
            return all(input_high < math.inf for _, input_high in inputs) and math.isnan(low)
        if not all(math.isfinite(bound) for pair in inputs for bound in pair):
            return False
        mask = torch.finfo(node.dtype).min / 2
        reads_mask = node.op not in PRODUCTS and any(input_low <= mask for input_low, _ in inputs)
        is_mask = reads_mask and low == -math.inf and high < math.inf
        return not is_mask

    def _producer(
        self,
        node: OpNode,
        elements: Tensor,
        reference_abs_max: float | None,
        *,
        is_weight: bool,
    ) -> Producer:
        assert node.dtype is not None  # noqa: S101  only floating-point outputs are examined
        return Producer(
            identity=self._next_identity(),
            node=node,
            num_elements=int(elements.sum()),
            rows=self._real_tokens.rows_with(elements),
            positions=self._real_tokens.first_positions(elements),
            reference_abs_max=reference_abs_max,
            limit=float(torch.finfo(node.dtype).max),
            is_weight=is_weight,
        )


def _float_bounds(tensor: Tensor) -> tuple[float, float]:
    """Bounds; (0, 0) of what is not floating point."""
    return bounds(tensor) if tensor.is_floating_point() else (0.0, 0.0)


def _is_whole(tensor: Tensor) -> bool:
    """Whether it covers its storage."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _storage(tensor: Tensor) -> int:
    """Identifies the memory of a tensor, which its views share."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  its only spelling
