"""A unit as a run called it, kept so that it can be called again and examined."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.blame.graph import SegmentRole
from precheck.measure.watch.op_kinds import MASK_SENTINEL
from precheck.measure.watch.segment import OpNode, Segment
from precheck.measure.watch.trees import copied, results, tensors_in, versions_of
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from precheck.checkpoint.architecture import Unit
    from precheck.measure.blame.examine import Examiner, ReferenceOps


@dataclass(slots=True, eq=False, kw_only=True)
class UnitCall:
    """The arguments of a unit and what it returned."""

    unit: Unit
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: dict[int, frozenset[int]]
    """The taint of each tensor among its arguments, by the tensor's id."""
    sources: list[frozenset[int]]
    """The same, in the order of the copies in ``args`` and ``kwargs``."""
    segment: Segment = field(default_factory=Segment)
    output: Any = None
    results: list[Tensor] = field(default_factory=list)
    """The tensors it returned, and the arguments it wrote into."""
    ops: ReferenceOps | None = None
    """Snapshots of a reference's operations, taken when the first run needs them."""
    _originals: list[Tensor] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        unit: Unit,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outside: Examiner,
    ) -> UnitCall:
        """A call that begins; the tensors are copied, since the unit may overwrite them."""
        tensors = list(tensors_in((args, kwargs)))
        return cls(
            unit=unit,
            module=module,
            args=copied(args),
            kwargs=copied(kwargs),
            given={id(tensor): outside.sources(tensor) for tensor in tensors},
            sources=[outside.sources(tensor) for tensor in tensors],
            _originals=tensors,
            _versions=versions_of(tensors),
        )

    def leave(self, segment: Segment, output: Any) -> None:
        """Records that the unit returned ``output``; ``segment`` are its operations."""
        self.segment, self.output = segment, output
        self.results = results(output, self._originals, self._versions)
        self._originals, self._versions = [], []

    @property
    def is_all_nonfinite(self) -> bool:
        """Whether no element of its input is finite, so that no producer can be found in it."""
        hidden = hidden_states_in(list(tensors_in((self.args, self.kwargs))))
        return bool(hidden) and not bool(hidden[0].isfinite().any())

    def role(self, num_blocks: int) -> SegmentRole:
        """Where the unit stands, after ``num_blocks`` decoder layers of the forward."""
        if self.unit.is_block:
            return SegmentRole.BLOCK
        if self.unit.section in TOWERS and num_blocks:
            return SegmentRole.BETWEEN
        embeds = any(node.op == "aten.embedding" for node in self.segment.nodes)
        return SegmentRole.EMBEDDING if embeds or num_blocks == 0 else SegmentRole.HEAD

    @property
    def hidden_states(self) -> Tensor | None:
        """The first result that may be hidden states or scores."""
        return main_output(self.results)


def hidden_states_in(tensors: list[Tensor]) -> list[Tensor]:
    """Those that may carry activations: floating point, ``(batch, seq, hidden)``.

    Masks and position biases have four dimensions. The first argument of a tower that takes the
    patches of all images in one row is ``(patches, hidden)``; rotations of that shape follow.
    """
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    if floating and floating[0].dim() == 2:  # noqa: PLR2004
        return floating[:1]
    return [tensor for tensor in floating if tensor.dim() == 3]  # noqa: PLR2004


def main_output(tensors: list[Tensor]) -> Tensor | None:
    """The first floating-point tensor of two or more dimensions."""
    outputs = (tensor for tensor in tensors if tensor.is_floating_point() and tensor.dim() > 1)
    return next(outputs, None)


def logits_in(output: Any, vocab_size: int | None) -> Tensor | None:
    """The scores of the vocabulary in what a model returns; None if it has no head.

    Code that comes with a checkpoint may return a plain dict, a tuple or the tensor itself: there,
    scores are recognised by being as wide as the vocabulary.
    """
    named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(named, torch.Tensor):
        return named
    if not isinstance(output, torch.Tensor) and type(output) is not tuple:
        return None
    last = main_output(list(tensors_in(output)))
    return last if last is not None and last.shape[-1] == vocab_size else None


def needs_second_look(segment: Segment, reference: Segment) -> bool:
    """Whether something in a unit is not finite and no mask explains it."""
    reference_nodes = {node.key: node for node in reference.nodes if not node.is_cast}
    return any(
        not node.is_finite and not _is_mask(node, segment.nodes, reference_nodes)
        for node in segment.nodes
    )


def _is_mask(
    node: OpNode, nodes: list[OpNode], reference_nodes: dict[tuple[str, str, int], OpNode]
) -> bool:
    """Whether it is -inf where the reference holds a mask, and finite everywhere else."""
    if node.minimum != -math.inf or node.maximum is None or not node.maximum < math.inf:
        return False
    if node.is_cast:
        source = nodes[node.inputs[0].node] if node.inputs[0].node >= 0 else None
        return source is not None and source.minimum is not None and source.minimum <= MASK_SENTINEL
    match = reference_nodes.get(node.key)
    if match is None or match.shape != node.shape or match.minimum is None:
        return False
    is_all_mask = node.maximum == -math.inf
    reference_maximum = match.maximum if match.maximum is not None else math.nan
    return match.minimum <= MASK_SENTINEL and (
        reference_maximum <= MASK_SENTINEL if is_all_mask else math.isfinite(reference_maximum)
    )


def routed_nodes(segment: Segment) -> frozenset[int]:
    """Indices of the operations that depend on which experts a router chose."""
    routed = {node.index for node, _ in segment.routes}
    for node in segment.nodes:
        if any(origin.node in routed for origin in node.inputs):
            routed.add(node.index)
    return frozenset(routed)
