"""The operations whose largest value is searched for: those that a run computes in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from precheck.measure.lockstep.witness import Witness

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.blame.located_producer import Location
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.peaks import OpKey
    from precheck.measure.watch.segment import OpNode
    from precheck.records.mechanism import Mechanism
    from precheck.records.precision import Dtype
    from precheck.records.traces import Section


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One operation, as a scan names it."""

    key: OpKey
    op: str
    source: str
    """``modeling_qwen2.py:155``."""
    mechanism: Mechanism
    layer: int | None
    section: Section
    order: tuple[int, int]
    """Where it comes in the model."""
    probes_abs_max: float
    """The largest value that the scan's own probes gave, in float32."""

    @property
    def module(self) -> str:
        """As ``named_modules()`` spells it."""
        return self.key[0]


@dataclass(slots=True, eq=False)
class TargetWitness(Witness):
    """Collects the operations that a scan's runs compute in one dtype, and their peaks.

    Args:
        dtype: of 16 bits.
    """

    dtype: Dtype
    found: dict[tuple[str, OpKey], Target] = field(default_factory=dict)
    """By attention implementation and operation."""
    inputs: dict[tuple[int, ...], None] = field(default_factory=dict)
    """Token ids of the probes that are text, without padding, each once."""

    def record_peak(
        self,
        skeleton: Skeleton,
        held: OpNode,
        *,
        abs_max: float,
        mechanism: Mechanism,
        location: Location,
    ) -> None:
        """Keeps the operation, and the largest value so far."""
        if skeleton.dtype is not self.dtype:
            return
        name = (skeleton.attn_implementation, held.key)
        known = self.found.get(name)
        if known is None:
            self.found[name] = Target(
                key=held.key,
                op=held.op,
                source=held.source,
                mechanism=mechanism,
                layer=location.layer,
                section=location.section,
                order=(location.order, held.index),
                probes_abs_max=abs_max,
            )
        elif abs_max > known.probes_abs_max:
            self.found[name] = replace(known, probes_abs_max=abs_max)

    def record_output(self, _skeleton: Skeleton, batch: Batch, _logits: Tensor) -> None:
        """Keeps the token ids of a batch."""
        if not batch.media:
            for row in batch.rows():
                self.inputs.setdefault(tuple(row.input_ids[0].tolist()))

    def targets(self, attn_implementation: str) -> list[Target]:
        """The operations of one attention implementation, in the model's order."""
        found = [target for (attn, _), target in self.found.items() if attn == attn_implementation]
        return sorted(found, key=lambda target: target.order)
