"""A unit as a run called it: kept so that it can be called again and looked into."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.blame.graph import SegmentRole
from precheck.measure.watch.reduce import MASK_SENTINEL
from precheck.measure.watch.segment import OpNode, Segment
from precheck.measure.watch.trees import copied, results, tensors_in, versions_of
from precheck.records.traces import TOWERS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from precheck.checkpoint.architecture import Unit
    from precheck.measure.blame.examine import Examiner, ReferenceOps


@dataclass(slots=True, eq=False, kw_only=True)
class UnitCall:
    """What a unit was given and what came of it."""

    unit: Unit
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    given: dict[int, frozenset[int]]
    """What each tensor it was given is tainted by, by the tensor's id."""
    sources: list[frozenset[int]]
    """The same, in the order of the copies in ``args`` and ``kwargs``."""
    segment: Segment = field(default_factory=Segment)
    output: Any = None
    results: list[Tensor] = field(default_factory=list)
    """The tensors it hands on: those it returns, and those it was given and wrote into."""
    ops: ReferenceOps | None = None
    """Snapshots of a reference's operations, taken when the first run asks."""
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
        """Keeps copies of the tensors, which the unit may overwrite."""
        given = list(tensors_in((args, kwargs)))
        return cls(
            unit=unit,
            module=module,
            args=copied(args),
            kwargs=copied(kwargs),
            given={id(each): outside.sources(each) for each in given},
            sources=[outside.sources(each) for each in given],
            _originals=given,
            _versions=versions_of(given),
        )

    def leave(self, segment: Segment, output: Any) -> None:
        """The unit returned ``output``; ``segment`` is what ran in it."""
        self.segment, self.output = segment, output
        self.results = results(output, self._originals, self._versions)
        self._originals, self._versions = [], []

    @property
    def is_all_nonfinite(self) -> bool:
        """The hidden states it was given are finite nowhere: nothing new can be learned in it."""
        hidden = hidden_states_in(list(tensors_in((self.args, self.kwargs))))
        return bool(hidden) and not bool(hidden[0].isfinite().any())

    def position(self, num_blocks: int) -> SegmentRole:
        """Where the unit stands, ``num_blocks`` decoder layers into the forward."""
        if self.unit.is_block:
            return SegmentRole.BLOCK
        if self.unit.section in TOWERS and num_blocks:
            return SegmentRole.BETWEEN
        embeds = any(node.op == "aten.embedding" for node in self.segment.nodes)
        return SegmentRole.EMBEDDING if embeds or num_blocks == 0 else SegmentRole.HEAD

    @property
    def hidden_states(self) -> Tensor | None:
        """The first output that may be hidden states or scores."""
        return main_output(self.results)


def hidden_states_in(tensors: list[Tensor]) -> list[Tensor]:
    """Those that may carry activations: floating point, ``(batch, seq, hidden)``.

    Masks and position biases have four dimensions. Towers that take the patches of all images in
    one row are given ``(patches, hidden)`` first, and rotations of the same shape after it.
    """
    floating = [each for each in tensors if each.is_floating_point()]
    if floating and floating[0].dim() == 2:  # noqa: PLR2004
        return floating[:1]
    return [each for each in floating if each.dim() == 3]  # noqa: PLR2004


def main_output(tensors: list[Tensor]) -> Tensor | None:
    """The first floating-point tensor of two or more dimensions."""
    found = (each for each in tensors if each.is_floating_point() and each.dim() > 1)
    return next(found, None)


def logits_in(output: Any, vocab_size: int | None) -> Tensor | None:
    """The scores of the vocabulary in what a model returns; None in one that has no head.

    Code that comes with a checkpoint may return a plain dict, a tuple or the tensor itself: there,
    scores are what is as wide as the vocabulary.
    """
    named = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)
    if isinstance(named, torch.Tensor):
        return named
    if not isinstance(output, torch.Tensor) and type(output) is not tuple:
        return None
    last = main_output(list(tensors_in(output)))
    return last if last is not None and last.shape[-1] == vocab_size else None


def needs_second_look(segment: Segment, reference: Segment) -> bool:
    """Whether a unit has to be looked into: something is not finite, and no mask explains it."""
    known = {node.key: node for node in reference.nodes if not node.is_cast}
    return any(
        not node.is_finite and not _is_explained(node, segment.nodes, known)
        for node in segment.nodes
    )


def _is_explained(
    node: OpNode, nodes: list[OpNode], reference: dict[tuple[str, str, int], OpNode]
) -> bool:
    """-inf where the reference holds a mask, and nothing else that is not finite."""
    if node.minimum != -math.inf or node.maximum is None or not node.maximum < math.inf:
        return False
    if node.is_cast:
        given = nodes[node.inputs[0].node] if node.inputs[0].node >= 0 else None
        return given is not None and given.minimum is not None and given.minimum <= MASK_SENTINEL
    match = reference.get(node.key)
    if match is None or match.shape != node.shape or match.minimum is None:
        return False
    is_all_mask = node.maximum == -math.inf
    theirs = match.maximum if match.maximum is not None else math.nan
    return match.minimum <= MASK_SENTINEL and (
        theirs <= MASK_SENTINEL if is_all_mask else math.isfinite(theirs)
    )


def routed_nodes(segment: Segment) -> frozenset[int]:
    """Indices of the operations that depend on which experts a router chose."""
    found: set[int] = set()
    for node in segment.nodes:
        if node.op == "aten.topk" or any(origin.node in found for origin in node.inputs):
            found.add(node.index)
    return frozenset(found)
