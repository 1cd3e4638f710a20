"""What one run gathers, batch by batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from precheck.measure.blame.overflow_rows import overflow_rows
from precheck.measure.blame.peaks import Peaks
from precheck.measure.lockstep.layers import LayerTotals
from precheck.measure.watch.float16_sums import SumsTotals
from precheck.records.quantities import counted
from precheck.records.traces import GREEDY, SAMPLED, RunTrace, Section, Symptom

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.blame.found import LocatedProducer
    from precheck.measure.lockstep.logits import LogitsTotals
    from precheck.measure.models.skeleton import Skeleton
    from precheck.records.traces import Generation


def _symptom(broken: list[Generation]) -> Symptom | None:
    """What a user sees of a run that breaks while it writes."""
    if not broken:
        return None
    seen = {each.way: _seen(each) for each in reversed(broken)}
    unbroken = "did not break so far"
    return Symptom(greedy=seen.get(GREEDY, unbroken), sampling=seen.get(SAMPLED, unbroken))


def _seen(broken: Generation) -> str:
    text = f"breaks after {counted(broken.broken_step or 0, 'token')}: {broken.text or ''}"
    return text if broken.error is None else f"{text}, then raises {broken.error}"


_ORDER = (
    Section.VISION,
    Section.AUDIO,
    Section.PROJECTOR,
    Section.ENCODER,
    Section.DECODER,
    Section.HEAD,
)
"""As a forward passes them; batches of text, which come first, pass no tower."""


@dataclass(slots=True, eq=False)
class RunTotals:
    """Statistics of one run over a batch; plain data, so that it can go to another process."""

    peaks: Peaks
    fused_scores: Peaks
    """Raw scores computed from the query and key of fused attention."""
    layers: dict[tuple[Section, int], LayerTotals] = field(default_factory=dict)
    logits: LogitsTotals | None = None
    found: list[tuple[LocatedProducer, bool]] = field(default_factory=list)
    """Producers, and whether each is absorbed."""
    reaches_output: bool = False
    reference_nonfinite: bool = False
    symptom: Symptom | None = None
    failure: str | None = None
    stopped_after: str | None = None
    """The block from which on the run was NaN everywhere and was not computed."""
    sums: SumsTotals = field(default_factory=SumsTotals)
    num_watched: int = 0
    unwatched: Counter[str] = field(default_factory=Counter)
    _num_producers: int = 0

    @classmethod
    def of(cls, skeleton: Skeleton) -> RunTotals:
        """Of a run that has not begun."""
        return cls(
            peaks=Peaks(dtype=skeleton.dtype, attn_implementation=skeleton.attn_implementation),
            fused_scores=Peaks(dtype=skeleton.dtype, attn_implementation="eager"),
        )

    def merge(self, other: RunTotals) -> RunTotals:
        """Both sets of batches together; ``other``'s come after these."""
        layers = dict(self.layers)
        for key, layer in other.layers.items():
            layers[key] = layers[key].merge(layer) if key in layers else layer
        logits = self.logits or other.logits
        if self.logits is not None and other.logits is not None:
            logits = self.logits.merge(other.logits)
        return RunTotals(
            peaks=self.peaks.merge(other.peaks),
            fused_scores=self.fused_scores.merge(other.fused_scores),
            layers=layers,
            logits=logits,
            found=[*self.found, *other.found],
            reaches_output=self.reaches_output or other.reaches_output,
            reference_nonfinite=self.reference_nonfinite or other.reference_nonfinite,
            symptom=self.symptom or other.symptom,
            failure=self.failure or other.failure,
            stopped_after=self._stopped_after(other),
            sums=self.sums.merge(other.sums),
            num_watched=self.num_watched + other.num_watched,
            unwatched=self.unwatched + other.unwatched,
        )

    def _stopped_after(self, other: RunTotals) -> str | None:
        """The later of both blocks; None if one of them never stopped."""
        both = {self.stopped_after, other.stopped_after}
        if None in both:
            return None
        return next(
            (each.module for each in reversed(self.layers.values()) if each.module in both), None
        )

    def next_identity(self) -> int:
        """Another name for another producer."""
        self._num_producers += 1
        return self._num_producers

    def add_layer(
        self,
        *,
        index: int,
        section: Section,
        module: str,
        tokens: Tensor,
        reference: Tensor | None,
        same_routing: Tensor | None,
        agrees: Tensor | None,
    ) -> None:
        """Takes a decoder layer's output; the arguments are those of ``LayerTotals``."""
        key = (section, index)
        if key not in self.layers:
            self.layers[key] = LayerTotals(index=index, section=section, module=module)
        self.layers[key].add(tokens, reference, same_routing)
        if agrees is not None:
            self.layers[key].add_routing(agrees)

    def trace(
        self, skeleton: Skeleton, *, device: str, generations: tuple[Generation, ...] = ()
    ) -> RunTrace:
        """As the report has it, with what the run wrote."""
        is_reference = skeleton.dtype.is_reference
        rows = overflow_rows(self.found)
        known = {(each.module, each.op, each.source) for each in rows}
        broken = [each for each in generations if each.broken_step is not None]
        return RunTrace(
            **skeleton.configuration.as_fields(),
            requested_attn_implementation=skeleton.requested_attn_implementation,
            device=device,
            arithmetic=skeleton.arithmetic,
            partial_sums=self.sums.record,
            experts_implementation=skeleton.experts_implementation,
            failure=self.failure,
            stopped_after=self.stopped_after,
            overflows=(
                *rows,
                *{
                    key: each.overflow
                    for each in broken
                    if each.overflow is not None
                    and (key := (each.overflow.module, each.overflow.op, each.overflow.source))
                    not in known
                }.values(),
            ),
            reaches_output=self.reaches_output or bool(broken and not is_reference),
            reference_nonfinite=self.reference_nonfinite or bool(broken and is_reference),
            layers=tuple(
                self.layers[key].trace
                for key in sorted(self.layers, key=lambda each: _ORDER.index(each[0]))
            ),
            logits=None if self.logits is None else self.logits.trace,
            symptom=self.symptom or _symptom(broken),
            generations=generations,
        )
