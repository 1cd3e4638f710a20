"""The figures of one run, collected batch by batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from precheck.measure.blame.overflow_rows import overflow_rows
from precheck.measure.blame.peaks import Peaks
from precheck.measure.lockstep.figures.key_values import KeyValueTotals
from precheck.measure.lockstep.figures.layers import LayerTotals
from precheck.measure.watch.float16_sums import SumsTotals
from precheck.records.quantities import counted
from precheck.records.traces import GREEDY, SAMPLED, RunTrace, Section, Symptom

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.blame.located_producer import LocatedProducer
    from precheck.measure.bounds.certificates import RunBounds
    from precheck.measure.lockstep.figures.answers import AnswersTotals
    from precheck.measure.lockstep.figures.logits import LogitsTotals
    from precheck.measure.lockstep.figures.positions import PositionTotals
    from precheck.measure.models.skeleton import Skeleton
    from precheck.records.format_loss import FormatCulprits
    from precheck.records.outcomes.positions import PositionKind, PositionRounding
    from precheck.records.traces import Generation, Overflow


_ORDER = (
    Section.VISION,
    Section.AUDIO,
    Section.PROJECTOR,
    Section.ENCODER,
    Section.DECODER,
    Section.HEAD,
)
"""The order of a forward. Text runs first and passes no tower, so layers are added in another."""


@dataclass(slots=True, eq=False)
class RunTotals:
    """Statistics of one run over a batch; plain data, which can be sent to another process."""

    peaks: Peaks
    fused_scores: Peaks
    """Raw scores, computed from the query and key of fused attention."""
    key_values: KeyValueTotals = field(default_factory=KeyValueTotals)
    """Of a float32 run."""
    layers: dict[tuple[Section, int], LayerTotals] = field(default_factory=dict)
    logits: LogitsTotals | None = None
    format_loss: LogitsTotals | None = None
    """Against the run of the same dtype without the format."""
    answers: AnswersTotals | None = None
    positions: PositionTotals | None = None
    """Of the text whose figures are told by position."""
    position_ops: dict[tuple[PositionKind, str], PositionRounding] = field(default_factory=dict)
    """Where that text's positions go through 16 bits, by kind and source line."""
    producers: list[tuple[LocatedProducer, bool]] = field(default_factory=list)
    """Each with whether it is absorbed."""
    reaches_output: bool = False
    reference_nonfinite: bool = False
    symptom: Symptom | None = None
    failure: str | None = None
    is_finished: bool = True
    stopped_after: str | None = None
    """The block whose output was NaN everywhere, so that those after it were not computed."""
    sums: SumsTotals = field(default_factory=SumsTotals)
    num_watched: int = 0
    unwatched: Counter[str] = field(default_factory=Counter)
    _num_producers: int = 0

    @classmethod
    def of(cls, skeleton: Skeleton) -> RunTotals:
        """The totals of a run that has not begun."""
        return cls(
            peaks=Peaks(dtype=skeleton.dtype, attn_implementation=skeleton.attn_implementation),
            fused_scores=Peaks(dtype=skeleton.dtype, attn_implementation="eager"),
        )

    def merge(self, other: RunTotals) -> RunTotals:
        """The totals of both sets of batches; those of ``other`` come after these."""
        layers = dict(self.layers)
        for key, layer in other.layers.items():
            layers[key] = layers[key].merge(layer) if key in layers else layer
        return RunTotals(
            peaks=self.peaks.merge(other.peaks),
            fused_scores=self.fused_scores.merge(other.fused_scores),
            key_values=self.key_values.merge(other.key_values),
            layers=layers,
            logits=_merged(self.logits, other.logits),
            format_loss=_merged(self.format_loss, other.format_loss),
            answers=_merged(self.answers, other.answers),
            positions=_merged(self.positions, other.positions),
            position_ops=_coarsest(self.position_ops, other.position_ops),
            producers=[*self.producers, *other.producers],
            reaches_output=self.reaches_output or other.reaches_output,
            reference_nonfinite=self.reference_nonfinite or other.reference_nonfinite,
            symptom=self.symptom or other.symptom,
            failure=self.failure or other.failure,
            is_finished=self.is_finished and other.is_finished,
            stopped_after=self._stopped_after(other),
            sums=self.sums.merge(other.sums),
            num_watched=self.num_watched + other.num_watched,
            unwatched=self.unwatched + other.unwatched,
        )

    def _stopped_after(self, other: RunTotals) -> str | None:
        """The later of both blocks; None if one of both sets of batches did not stop."""
        blocks = {self.stopped_after, other.stopped_after}
        if None in blocks:
            return None
        modules = [layer.module for layer in self.layers.values() if layer.module in blocks]
        return modules[-1] if modules else None

    def next_identity(self) -> int:
        """A number that no other producer of this run over this batch has."""
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
        """Adds the output of a decoder layer; the arguments are those of ``LayerTotals``."""
        key = (section, index)
        if key not in self.layers:
            self.layers[key] = LayerTotals(index=index, section=section, module=module)
        self.layers[key].add(tokens, reference, same_routing)
        if agrees is not None:
            self.layers[key].add_routing(agrees)

    @property
    def divergence(self) -> float | None:
        """What the run is judged by, nats; None where there is none, or no answer."""
        return None if self.logits is None or self.failure else self.logits.texts.verdict

    def trace(
        self,
        skeleton: Skeleton,
        *,
        device: str,
        generations: tuple[Generation, ...] = (),
        culprits: FormatCulprits | None = None,
        bounds: RunBounds | None = None,
    ) -> RunTrace:
        """The run as the report holds it, with the texts that it generated."""
        is_reference = skeleton.dtype.is_reference
        broken = [one for one in generations if one.broken_step is not None]
        return RunTrace(
            **skeleton.configuration.as_fields(),
            requested_attn_implementation=skeleton.requested_attn_implementation,
            device=device,
            arithmetic=skeleton.arithmetic,
            partial_sums=self.sums.record,
            experts_implementation=skeleton.experts_implementation,
            failure=self.failure,
            is_finished=self.is_finished,
            stopped_after=self.stopped_after,
            overflows=self._overflows(broken),
            reaches_output=self.reaches_output or bool(broken and not is_reference),
            reference_nonfinite=self.reference_nonfinite or bool(broken and is_reference),
            layers=tuple(
                self.layers[key].trace
                for key in sorted(self.layers, key=lambda key: _ORDER.index(key[0]))
            ),
            logits=None if self.logits is None else self.logits.trace,
            format_loss=None if self.format_loss is None else self.format_loss.loss_of_format,
            format_culprits=culprits,
            answers=None if self.answers is None or is_reference else self.answers.trace,
            positions=() if self.positions is None else self.positions.figures,
            position_roundings=tuple(self.position_ops.values()),
            symptom=self.symptom or _symptom(broken),
            generations=generations,
            proof=None if bounds is None else bounds.proof,
        )

    def _overflows(self, broken: list[Generation]) -> tuple[Overflow, ...]:
        """The rows of the forwards, then those of operations that broke only in generation."""
        rows = overflow_rows(self.producers)
        keys = {_key(row) for row in rows}
        generated = [generation.overflow for generation in broken]
        later = {_key(row): row for row in generated if row is not None and _key(row) not in keys}
        return (*rows, *later.values())


class _Mergeable(Protocol):
    def merge(self, other: Self) -> Self:
        """Both sets of batches."""


_Totals = TypeVar("_Totals", bound=_Mergeable)


def _merged(first: _Totals | None, second: _Totals | None) -> _Totals | None:
    """Both together, or the one that there is."""
    return first or second if first is None or second is None else first.merge(second)


def _coarsest(
    first: dict[tuple[PositionKind, str], PositionRounding],
    second: dict[tuple[PositionKind, str], PositionRounding],
) -> dict[tuple[PositionKind, str], PositionRounding]:
    both = dict(first)
    for key, row in second.items():
        if key not in both or both[key].abs_max < row.abs_max:
            both[key] = row
    return both


def _key(overflow: Overflow) -> tuple[str, str, str]:
    return (overflow.module, overflow.op, overflow.source)


def _symptom(broken: list[Generation]) -> Symptom | None:
    """What a user sees of a run that fails while it generates."""
    if not broken:
        return None
    texts = {generation.way: _text(generation) for generation in reversed(broken)}
    unbroken = "did not fail"
    return Symptom(greedy=texts.get(GREEDY, unbroken), sampling=texts.get(SAMPLED, unbroken))


def _text(broken: Generation) -> str:
    text = f"fails after {counted(broken.broken_step or 0, 'token')}: {broken.text or ''}"
    return text if broken.error is None else f"{text}, then raises {broken.error}"
