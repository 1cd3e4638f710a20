"""What a watched stretch of a live forward shows in hindsight, once its result is not finite."""

from __future__ import annotations

import linecache
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from precheck.measure.blame.examine import Examiner
from precheck.measure.blame.graph import SegmentRole
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.real_tokens import RealTokens
from precheck.measure.watch.trees import tensors_in
from precheck.records.mechanism import Mechanism
from precheck.records.traces import Overflow, Section

if TYPE_CHECKING:
    from torch import Tensor
    from torch._ops import OpOverload

    from precheck.checkpoint.architecture import Unit
    from precheck.measure.blame.examine import Producer
    from precheck.measure.blame.mechanisms import Classifier
    from precheck.measure.watch.segment import OpNode, Segment


RecordedOp = tuple["OpOverload", tuple[Any, ...], dict[str, Any], Any, str, tuple[str, int]]
"""An operation as it ran: arguments, result, module, and file and line."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenPositions:
    """Which positions of a forward are real tokens, and how many tokens came before them."""

    mask: Tensor | None
    """``(batch, everything so far)`` bool."""
    num_before: int

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> TokenPositions:
        """From what the model is called with."""
        mask = kwargs.get("attention_mask")
        is_plain = isinstance(mask, torch.Tensor) and mask.dim() == 2  # noqa: PLR2004
        # its name is another one since transformers 5.24
        cache = next((each for each in kwargs.values() if isinstance(each, Cache)), None)
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

    def before(self, row: int, length: int) -> int:
        """Real tokens of a row that earlier forwards saw."""
        if self.mask is None or row >= self.mask.shape[0]:
            return self.num_before
        return int(self.mask[row, : self.mask.shape[1] - length].sum())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BrokenStretch:
    """The operations of a stretch that broke."""

    ran: list[RecordedOp]
    hidden: list[Tensor]
    """Hidden states it was given."""
    unit: Unit | None
    """The decoder layer; None for what comes after the last."""
    index: int | None
    real_tokens: RealTokens
    positions: TokenPositions

    def overflows(
        self, weights: dict[int, str], classifier: Classifier
    ) -> tuple[tuple[Overflow, ...], bool]:
        """A row for each operation that broke, and whether it began there.

        Where every broken operation was given something broken, the first of them stands for all.
        """
        examiner = Examiner(
            reference=None,
            real_tokens=self.real_tokens,
            weight_faults=self._broken_weights(weights),
            next_identity=count(1).__next__,
        )
        segment = self._examined(examiner, weights)
        producers = examiner.take_producers()
        position = SegmentRole.HEAD if self.unit is None else SegmentRole.BLOCK
        found = tuple(
            self._row(
                each,
                Mechanism.WEIGHTS
                if each.is_weight
                else classifier.mechanism(each.node, segment, None, position),
            )
            for each in producers
        )
        if found:
            return found, True
        broken = next(each for each in segment.nodes if not each.is_finite)
        return (self._left_behind(broken),), False

    def _broken_weights(self, weights: dict[int, str]) -> frozenset[int]:
        """Ids of parameters that were used and are not finite."""
        used = {id(each): each for _, args, _, _, _, _ in self.ran for each in tensors_in(args)}
        return frozenset(
            identity
            for identity, each in used.items()
            if identity in weights
            and each.is_floating_point()
            and not bool(torch.stack(torch.aminmax(each)).isfinite().all())
        )

    def _examined(self, examiner: Examiner, weights: dict[int, str]) -> Segment:
        watcher = OpWatcher(
            stack=None, weights=weights, real_tokens=self.real_tokens, check=lambda: None
        )
        watcher.examination = examiner
        watcher.begin(self.hidden)
        for func, args, kwargs, output, module, source in self.ran:
            watcher.replay(func, args, kwargs, output, module=module, source=source)
        return watcher.end()

    def _row(self, producer: Producer, mechanism: Mechanism) -> Overflow:
        positions = {
            f"row {row}": position + self.positions.before(row, self.real_tokens.length)
            for row, position in producer.positions.items()
        }
        return self._overflow(
            producer.node,
            mechanism=mechanism,
            num_elements=producer.num_elements,
            rows=producer.rows,
            positions=positions,
        )

    def _left_behind(self, node: OpNode) -> Overflow:
        return self._overflow(
            node, mechanism=Mechanism.OTHER, num_elements=0, rows=(), positions={}
        )

    def _overflow(
        self,
        node: OpNode,
        *,
        mechanism: Mechanism,
        num_elements: int,
        rows: tuple[int, ...],
        positions: dict[str, int],
    ) -> Overflow:
        dtype = node.dtype or torch.float32
        return Overflow(
            module=node.module,
            layer=None if self.unit is None else self._layer(),
            section=Section.HEAD if self.unit is None else self.unit.section,
            op=node.op,
            source=node.source,
            source_file=node.source_file,
            code=linecache.getline(node.filename, node.line).strip(),
            mechanism=mechanism,
            reference_abs_max=None,
            limit=float(torch.finfo(dtype).max),
            num_elements=num_elements,
            probes=tuple(f"row {row}" for row in rows),
            first_positions=positions,
            absorbed=False,
        )

    def _layer(self) -> int | None:
        name = "" if self.unit is None else self.unit.name.rpartition(".")[2]
        return int(name) if name.isdigit() else self.index
