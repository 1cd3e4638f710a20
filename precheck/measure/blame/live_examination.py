"""Names the operations that broke in a stretch of a live forward, once its result is not finite."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import Cache

from precheck.measure.blame.examine import Examiner, Producer
from precheck.measure.blame.graph import SegmentRole
from precheck.measure.blame.located_producer import LocatedProducer, Location
from precheck.measure.blame.overflow_rows import overflow_row
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.real_tokens import RealTokens
from precheck.measure.watch.trees import tensors_in
from precheck.records.mechanism import Mechanism
from precheck.records.traces import Section

if TYPE_CHECKING:
    from torch import Tensor
    from torch._ops import OpOverload

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.blame.mechanisms import Classifier
    from precheck.measure.watch.segment import OpNode, Segment
    from precheck.records.traces import Overflow


class RecordedOp(NamedTuple):
    """An operation as it ran."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    module: str
    source: tuple[str, int]
    """File and line."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenPositions:
    """Which positions of a forward are real tokens, and how many tokens came before them."""

    mask: Tensor | None
    """``(batch, everything so far)`` bool."""
    num_before: int

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> TokenPositions:
        """From the arguments that the model is called with."""
        mask = kwargs.get("attention_mask")
        is_plain = isinstance(mask, torch.Tensor) and mask.dim() == 2  # noqa: PLR2004
        # transformers 5.24 renamed the argument
        cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
        return cls(
            mask=mask.bool() if is_plain and mask is not None else None,
            num_before=0 if cache is None else int(cache.get_seq_length()),
        )

    def real_tokens(self, hidden: Tensor) -> RealTokens:
        """For hidden states or logits, ``(batch, seq, ...)``."""
        rows, length = (*hidden.shape, 1)[:2]
        mask = None
        if self.mask is not None and self.mask.shape[0] == rows and self.mask.shape[1] >= length:
            mask = self.mask[:, -length:]
        return RealTokens(num_rows=rows, length=length, mask=mask)

    def num_earlier(self, row: int, length: int) -> int:
        """Real tokens of a row in earlier forwards; this one has ``length`` positions."""
        if self.mask is None or row >= self.mask.shape[0]:
            return self.num_before
        return int(self.mask[row, : self.mask.shape[1] - length].sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BrokenStretch:
    """A decoder layer, or the end of a forward, whose result is not finite, and its operations."""

    ops: list[RecordedOp]
    hidden: list[Tensor]
    """Hidden states it started from."""
    unit: Unit | None
    """The decoder layer; None for what comes after the last."""
    index: int | None
    layout: Architecture
    real_tokens: RealTokens
    positions: TokenPositions

    def overflows(
        self, parameters: Parameters, classifier: Classifier
    ) -> tuple[tuple[Overflow, ...], bool]:
        """A row for each operation that broke, and whether the fault began there.

        If no operation broke on sound inputs, the only row is that of the first that is not finite,
        and the fault began elsewhere.
        """
        examiner = Examiner(
            reference=None,
            real_tokens=self.real_tokens,
            parameters=Parameters(faulty=self._nonfinite_weights(parameters)),
            next_identity=count(1).__next__,
        )
        segment = self._examined(examiner, parameters)
        rows = tuple(
            self._row(
                producer,
                classifier.producer_mechanism(
                    producer, segment, None, self._role(producer.node.module)
                ),
            )
            for producer in examiner.take_producers()
        )
        if rows:
            return rows, True
        first = next(node for node in segment.nodes if not node.is_finite)
        return (self._row(_inherited_fault(first), Mechanism.OTHER),), False

    def _nonfinite_weights(self, parameters: Parameters) -> frozenset[int]:
        """Ids of parameters that were used and are not finite."""
        used = {id(tensor): tensor for op in self.ops for tensor in tensors_in(op.args)}
        return frozenset(
            identity
            for identity, tensor in used.items()
            if identity in parameters.names
            and tensor.is_floating_point()
            and not bool(torch.stack(torch.aminmax(tensor)).isfinite().all())
        )

    def _examined(self, examiner: Examiner, parameters: Parameters) -> Segment:
        watcher = OpWatcher(
            stack=None, parameters=parameters, real_tokens=self.real_tokens, check=lambda: None
        )
        watcher.examination = examiner
        watcher.begin(self.hidden)
        for op in self.ops:
            watcher.replay(
                op.func, op.args, op.kwargs, op.output, module=op.module, source=op.source
            )
        return watcher.end()

    def _row(self, producer: Producer, mechanism: Mechanism) -> Overflow:
        length = self.real_tokens.length
        located = LocatedProducer(
            # for a cast it is the magnitude of its input, but no float32 run has computed that
            producer=replace(producer, reference_abs_max=None),
            location=self._location(producer.node.module),
            mechanism=mechanism,
            probes=tuple(f"row {row}" for row in producer.rows),
            first_positions={
                f"row {row}": position + self.positions.num_earlier(row, length)
                for row, position in producer.positions.items()
            },
        )
        return overflow_row([(located, False)])

    def _is_inside(self, module: str) -> bool:
        """Whether a module is part of the decoder layer, and did not run before it."""
        name = None if self.unit is None else self.unit.name
        return name is not None and (module == name or module.startswith(f"{name}."))

    def _role(self, module: str) -> SegmentRole:
        if self.unit is None:
            return SegmentRole.HEAD
        if self._is_inside(module):
            return SegmentRole.BLOCK
        return SegmentRole.BETWEEN if self.index else SegmentRole.EMBEDDING

    def _location(self, module: str) -> Location:
        if self.unit is None:
            return Location(order=0, layer=None, section=Section.HEAD)
        if not self._is_inside(module):
            return Location(order=0, layer=None, section=self.layout.section_of(module))
        number = self.unit.name.rpartition(".")[2]
        layer = int(number) if number.isdigit() else self.index
        return Location(order=0, layer=layer, section=self.unit.section)


def _inherited_fault(node: OpNode) -> Producer:
    """An operation that passed on what an earlier, unwatched fault left."""
    return Producer(
        identity=0,
        node=node,
        num_elements=0,
        rows=(),
        positions={},
        reference_abs_max=None,
        limit=float(torch.finfo(node.dtype or torch.float32).max),
        is_weight=False,
    )
