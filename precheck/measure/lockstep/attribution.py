"""Attributes what breaks in one run over one batch: which operation, where, and why."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.measure.blame.examine import CLEAN, Examiner, unexpected_in
from precheck.measure.blame.graph import SegmentRole
from precheck.measure.blame.located_producer import MOST_ENTRIES, Entry, LocatedProducer
from precheck.measure.blame.second_look import SecondLook
from precheck.measure.blame.unit_call import routed_nodes
from precheck.measure.lockstep.symptom import answer_of, symptom_of
from precheck.measure.watch.fused_scores import raw_score_abs_max
from precheck.measure.watch.op_kinds import SOFTMAXES
from precheck.records.mechanism import Mechanism

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from precheck.measure.blame.examine import Producer, ReferenceOps
    from precheck.measure.blame.unit_call import UnitCall
    from precheck.measure.lockstep.context import PassageContext
    from precheck.measure.lockstep.figures.run_totals import RunTotals
    from precheck.measure.lockstep.segments import LocatedSegment
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.ops import OpWatcher


class Attribution:
    """Collects the producers and the peaks of a run, and says which producers reach its output.

    Args:
        totals: where they are added.
        skeleton: the run's model.
        batch: the probes, on the run's device.
        context: what all passages share.
        reference: the attribution of the run's reference; None for a float32 run.
        new_watcher: makes a watcher for the run's model.
        replaying: a context in which the run's units are no turns of the lockstep.
    """

    def __init__(
        self,
        *,
        totals: RunTotals,
        skeleton: Skeleton,
        batch: Batch,
        context: PassageContext,
        reference: Attribution | None,
        new_watcher: Callable[[], OpWatcher],
        replaying: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.producers: list[LocatedProducer] = []
        self.is_finished = False
        """The producers were handed to the totals."""
        self._totals = totals
        self._skeleton = skeleton
        self._batch = batch
        self._real_tokens = batch.real_tokens
        self._context = context
        self._reference = reference
        self.examiner = self._new_examiner(None)
        """Knows which producers each tensor between the units is tainted by."""
        self.second_look = SecondLook(
            new_watcher=new_watcher,
            new_examiner=self._new_examiner,
            replaying=replaying,
            real_tokens=self._real_tokens,
        )

    def _new_examiner(self, reference: ReferenceOps | None) -> Examiner:
        return Examiner(
            reference=reference,
            real_tokens=self._real_tokens,
            parameters=self._skeleton.parameters,
            next_identity=self._totals.next_identity,
        )

    def examine_unit(
        self, call: UnitCall, partner: UnitCall | None, located: LocatedSegment
    ) -> frozenset[int]:
        """Adds the producers in a unit; returns the identities of all that its outputs carry.

        Args:
            call: the unit as this run called it.
            partner: the same as the reference called it; None where the two part.
            located: the segment of the call.
        """
        if self._reference is None:
            examined = self.second_look.inspect_reference(call)
        else:
            examined = self.second_look.inspect(call, partner, self._reference.second_look)
        self._add_producers(
            examined.producers,
            replace(located, segment=examined.segment),
            leaving=CLEAN.union(*examined.sources),
        )
        for tensor, sources in zip(call.results, examined.sources, strict=True):
            self.examiner.taint(tensor, call.given.get(id(tensor), CLEAN) | sources)
        return CLEAN.union(*examined.sources)

    def add_between(self, located: LocatedSegment) -> None:
        """Adds the producers that the examiner found between two units, and the peaks there."""
        self._add_producers(self.examiner.take_producers(), located)
        self.add_peaks(located)

    def _add_producers(
        self,
        producers: Iterable[Producer],
        located: LocatedSegment,
        *,
        leaving: frozenset[int] | None = None,
    ) -> None:
        """Adds producers; ``leaving`` are those whose faults leave the unit, None without one.

        A row in which everything is masked is what a layer pads its blocks with (LongT5), and cuts
        off again: its NaN is nobody's fault unless it leaves the layer.
        """
        names = [probe.name for probe in self._batch.probes]
        for producer in producers:
            mechanism = self._context.classifier.producer_mechanism(
                producer, located.segment, located.reference, located.role
            )
            is_masked_row = mechanism is Mechanism.MASK and producer.node.op in SOFTMAXES
            if is_masked_row and leaving is not None and producer.identity not in leaving:
                continue
            rows, positions = self._rows(producer, located)
            self.producers.append(
                LocatedProducer(
                    producer=producer,
                    location=located.location,
                    mechanism=mechanism,
                    probes=tuple(names[row] for row in rows),
                    first_positions={names[row]: token for row, token in positions.items()},
                    entry=self._entry(producer, located, rows),
                )
            )

    def _entry(
        self, producer: Producer, located: LocatedSegment, rows: tuple[int, ...]
    ) -> Entry | None:
        """The arguments of the block, for the first few producers in blocks."""
        if not self._context.keeps_entries or len(self.producers) >= MOST_ENTRIES:
            return None
        if located.call is None or located.role is not SegmentRole.BLOCK:
            return None
        nodes = located.segment.nodes[: producer.node.index + 1]
        return Entry.of(located.call, rows=rows, modules=[node.module for node in nodes])

    def _rows(
        self, producer: Producer, located: LocatedSegment
    ) -> tuple[tuple[int, ...], dict[int, int]]:
        """Rows of the batch in which it happened, and the first real token of each.

        The operation's own output may not tell them: experts hold tokens in an order of their own.
        There, they are the rows in which the output of the unit is not finite.
        """
        node, call = producer.node, located.call
        unit = "" if call is None else call.unit.name
        is_sorted = node.index in routed_nodes(located.segment) and node.module != unit
        if producer.rows and not is_sorted:
            return producer.rows, producer.positions
        hidden = None if call is None else call.hidden_states
        if hidden is None:
            return (), {}
        nonfinite = ~hidden.isfinite()
        return self._real_tokens.rows_with(nonfinite), self._real_tokens.first_positions(nonfinite)

    def add_peaks(self, located: LocatedSegment) -> None:
        """Adds the largest magnitudes that a segment's operations have to hold."""
        for node in located.segment.nodes:
            self._totals.sums.add(node)
        if located.reference is None:
            return
        peaks = self._context.classifier.peaks(located.segment, located.reference, located.role)
        witness = self._context.witness
        for held in peaks:
            self._totals.peaks.add(
                node=held.node,
                abs_max=held.abs_max,
                mechanism=held.mechanism,
                location=located.location,
            )
            if self._totals.positions is not None:
                self._totals.positions.add_peaks(held.mechanism, held.match.abs_max_by_bucket)
            if witness is not None:
                witness.record_peak(
                    self._skeleton,
                    held.match,
                    abs_max=held.abs_max,
                    mechanism=held.mechanism,
                    location=located.location,
                )

    def add_key_values(self, located: LocatedSegment) -> None:
        """Adds how large the keys and values of a decoder layer are: nothing is computed for it."""
        if located.role is SegmentRole.BLOCK:
            operands = self._context.classifier.attentions(located.segment, located.role)
            self._totals.key_values.add(operands, located.segment.nodes, location=located.location)

    def add_fused_scores(self, located: LocatedSegment) -> dict[int, float]:
        """Adds the scores that eager attention would hold, from the inputs of fused attention.

        Returns:
            The largest raw score by the index of the operation; of batches without padding.
        """
        found: dict[int, float] = {}
        for call in located.segment.fused:
            abs_max = None if self._batch.is_padded else raw_score_abs_max(call.query, call.key)
            if abs_max is not None:
                found[call.node.index] = abs_max
                self._totals.fused_scores.add(
                    node=call.node,
                    abs_max=abs_max,
                    mechanism=Mechanism.ATTENTION_SCORES,
                    location=located.location,
                )
        return found

    def add_operands(self, located: LocatedSegment, *, fused: dict[int, float]) -> None:
        """Adds what engines may narrow to float16; ``fused`` are the raw scores of a segment."""
        nodes = self._context.classifier.operand_nodes(located.segment, located.role)
        self._totals.operands.add(located.segment, nodes, location=located.location, fused=fused)

    def judge_output(self, output: Tensor, reference: Tensor | None, *, has_logits: bool) -> None:
        """Says whether the model's output is broken at a real token, and which producers reach it.

        Args:
            output: logits, or what a model without a head returns.
            reference: the same of the reference; None if there is none.
            has_logits: the model has a head.
        """
        reached = CLEAN
        if self._reference is None:
            num_nonfinite = tensor_stats(self._real_tokens.tokens(output)).num_nonfinite
            self._totals.reference_nonfinite |= num_nonfinite > 0
        elif reference is not None:
            unexpected = unexpected_in(output, reference)
            if unexpected is not None and bool(self._real_tokens.tokens(unexpected).any()):
                self._totals.reaches_output = True
                reached = self.examiner.sources(output)
                self._totals.symptom = self._totals.symptom or (
                    symptom_of(output, unexpected, decode=self._context.decode)
                    if self._context.generates
                    else answer_of(output, has_logits=has_logits)
                )
        self._finish(reached)

    def finish_early(self, outputs: list[Tensor]) -> None:
        """Finishes a forward that was given up; ``outputs`` are those of its last unit."""
        if not self.is_finished:
            self._finish(CLEAN.union(*(self.examiner.sources(output) for output in outputs)))

    def _finish(self, reached: frozenset[int]) -> None:
        """Hands the producers over; those whose identity is not in ``reached`` are absorbed."""
        has_reference = self._reference is not None
        self._totals.producers += [
            (located, has_reference and located.producer.identity not in reached)
            for located in self.producers
        ]
        self.is_finished = True
