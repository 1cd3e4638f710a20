"""One run over one batch: watched, compared with its reference at every unit, examined if odd."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.blame.examine import CLEAN, Examiner, ReferenceOps, unexpected_in
from precheck.measure.blame.found import MOST_ENTRIES, Entry, LocatedProducer, Location
from precheck.measure.blame.graph import SegmentRole
from precheck.measure.blame.second_look import SecondLook
from precheck.measure.blame.unit_call import (
    UnitCall,
    hidden_states_in,
    logits_in,
    main_output,
    routed_nodes,
)
from precheck.measure.lockstep.layers import routing_agreement
from precheck.measure.lockstep.logits import LogitsTotals
from precheck.measure.lockstep.symptom import symptom_of
from precheck.measure.watch.fused_scores import raw_score_abs_max
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.reduce import tensor_stats
from precheck.measure.watch.segment import Segment
from precheck.measure.watch.trees import tensors_in
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.blame.examine import Producer
    from precheck.measure.blame.mechanisms import Classifier
    from precheck.measure.blame.second_look import Reexamined
    from precheck.measure.lockstep.run_totals import RunTotals
    from precheck.measure.lockstep.symptom import Decode
    from precheck.measure.lockstep.witness import Witness
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.float16_sums import Float16Sums
    from precheck.measure.watch.rounded_products import RoundedProducts


class RunWatch:
    """Hooks of one run during one batch.

    Args:
        totals: what it adds to.
        skeleton: the run's model.
        batch: the probes, on the run's device.
        layout: the model's units.
        reference: the float32 run with the same attention, whose operations match; None for such
            a run itself.
        baseline: the run whose values this one's are compared with; None for the first.
        classifier: says why operations overflow, shared by all runs.
        decode: token ids to text.
        check: raises to leave the forward.
        products: computes matrix products where the device has no arithmetic for the dtype.
        keeps_entries: keeps how the units were called in which something overflows.
        witness: is shown what the run makes.
    """

    def __init__(
        self,
        *,
        totals: RunTotals,
        skeleton: Skeleton,
        batch: Batch,
        layout: Architecture,
        reference: RunWatch | None,
        baseline: RunWatch | None,
        classifier: Classifier,
        decode: Decode,
        check: Callable[[], None],
        products: RoundedProducts | Float16Sums | None,
        keeps_entries: bool,
        witness: Witness | None,
    ) -> None:
        self._witness = witness
        self.is_replaying = False
        self.call: UnitCall | None = None
        self.between = ReferenceOps()
        self.between_segment = Segment()
        self.final: Tensor | None = None
        self._totals = totals
        self._batch = batch
        self._real_tokens = batch.real_tokens
        self._layout = layout
        self._reference = reference
        self._baseline = baseline
        self._classifier = classifier
        self._decode = decode
        self._check = check
        self._products = products
        self._keeps_entries = keeps_entries
        self._skeleton = skeleton
        self._stack = ModuleStack(self._skeleton.model)
        self._watcher = self._new_watcher()
        self._outside = self._examiner(None)
        self.second_look = SecondLook(
            new_watcher=self._new_watcher,
            new_examiner=self._examiner,
            replaying=self._replaying,
            real_tokens=self._real_tokens,
        )
        self._found: list[LocatedProducer] = []
        self._skipped: set[Unit] = set()
        self._is_finished = False
        self._order = 0
        self._num_blocks: dict[Section, int] = {}
        self._same_routing: Tensor | None = None

    def forward(self) -> None:
        """The model's own forward over the batch, and the comparison of its output."""
        self._open_between()
        with self._watcher:
            output = self._skeleton.forward(self._batch)
        self._close_between()
        logits = logits_in(output, self._skeleton.vocab_size)
        self.final = main_output(list(tensors_in(output))) if logits is None else logits
        self._finish(has_logits=logits is not None)

    @property
    def dtype_rank(self) -> int:
        """Float32 first: runs of a dtype go together, each after its reference."""
        dtype = self._skeleton.dtype
        return 0 if dtype.is_reference else 1 + list(Dtype).index(dtype)

    def skips(self, unit: Unit) -> bool:
        """Whether a unit hands on what it would make anyway: NaN everywhere."""
        return unit in self._skipped

    def waits_for(self, other: RunWatch) -> bool:
        """Whether this run will be compared with another one's output."""
        return not self._is_finished and other in (self._reference, self._baseline)

    def release(self) -> None:
        """Drops what was kept to be compared with."""
        self.final = self.call = None
        self.between = ReferenceOps()

    def detach(self) -> None:
        """Removes the hooks and hands over the counts, and what a forward left behind found."""
        self._stack.detach()
        for unit in self._skipped:
            del self._skeleton.model.get_submodule(unit.name).__dict__["forward"]
        self._skipped.clear()
        if not self._is_finished:
            last = [] if self.call is None else self.call.results
            self._hand_over(CLEAN.union(*(self._outside.sources(each) for each in last)))
        self._totals.num_watched = self._watcher.num_watched
        self._totals.unwatched = self._watcher.unwatched

    def enter_unit(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A unit begins."""
        self._close_between()
        self._watcher.paused = True
        module = self._skeleton.model.get_submodule(unit.name)
        self.call = UnitCall.of(unit, module, args, kwargs, self._outside)
        self._watcher.begin(hidden_states_in(list(tensors_in((args, kwargs)))))
        self._watcher.paused = False

    def leave_unit(self, unit: Unit, output: Any) -> None:
        """A unit is over: its numbers are fetched, compared and, if odd, looked into."""
        call = self.call
        assert call is not None  # noqa: S101  units do not nest
        assert call.unit is unit  # noqa: S101
        self._watcher.paused = True
        call.leave(self._watcher.end(), output)
        if self._witness is not None:
            self._witness.record_segment(self._skeleton, call.segment)
        place = self._place(unit)
        position = call.position(sum(self._num_blocks.values()))
        inspected = self._look_into(call)
        for producer in inspected.producers:
            self._add_found(
                producer, inspected.segment, self._partner(call), place, position, call=call
            )
        for each, carried in zip(call.results, inspected.sources, strict=True):
            self._outside.taint(each, call.given.get(id(each), CLEAN) | carried)
        self._compare(call, place)
        self._add_peaks(call.segment, self._partner(call), place, position)
        self._add_fused_scores(call.segment, place)
        self._stop_if_lost(call, CLEAN.union(*inspected.sources))
        if _has_row(unit):
            self._num_blocks[unit.section] = self._num_blocks.get(unit.section, 0) + 1
        self._order += 1
        self._open_between()

    def _stop_if_lost(self, call: UnitCall, carried: frozenset[int]) -> None:
        """What is NaN everywhere stays so: the blocks that follow hand it on, and cost nothing.

        The head is computed all the same, so that logits and symptom are what they really are.
        """
        hidden = call.hidden_states
        if not carried or self._skipped or not call.unit.is_block or hidden is None:
            return
        if not bool(hidden.isnan().all()):
            return
        for unit in self._layout.blocks_after(call.unit):
            module = self._skeleton.model.get_submodule(unit.name)
            module.forward = _handing_on(call.output)
            self._skipped.add(unit)
        if self._skipped:
            self._totals.stopped_after = call.unit.name

    # Between units, every operation is examined as it runs: there are few of them.

    def _open_between(self) -> None:
        outputs = [] if self.call is None else self.call.results
        self._watcher.begin(hidden_states_in(outputs))
        if self._reference is None:
            self.between = ReferenceOps()
            self._watcher.examination = self.between
        else:
            self._outside.compare_with(self._reference.between)
            self._watcher.examination = self._outside
        self._watcher.paused = False

    def _close_between(self) -> None:
        self._watcher.paused = True
        self._watcher.examination = None
        segment = self.between_segment = self._watcher.end()
        if self._witness is not None:
            self._witness.record_segment(self._skeleton, segment)
        if segment.nodes:
            section = self._layout.section_of(segment.nodes[-1].module)
            place = Location(order=self._order, layer=None, section=section)
            position = self._between_position(section)
            reference = None if self._reference is None else self._reference.between_segment
            for producer in self._outside.take_producers():
                self._add_found(producer, segment, reference, place, position, call=None)
            self._add_peaks(segment, reference, place, position)
        self._order += 1
        self._watcher.paused = False

    def _between_position(self, section: Section) -> SegmentRole:
        if not self._num_blocks:
            return SegmentRole.EMBEDDING
        return SegmentRole.HEAD if section is Section.HEAD else SegmentRole.BETWEEN

    def _look_into(self, call: UnitCall) -> Reexamined:
        if self._reference is None:
            return self.second_look.inspect_reference(call)
        return self.second_look.inspect(call, self._partner_call(call), self._reference.second_look)

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        self.is_replaying = True
        try:
            yield
        finally:
            self.is_replaying = False

    def _add_found(
        self,
        producer: Producer,
        segment: Segment,
        reference: Segment | None,
        place: Location,
        position: SegmentRole,
        *,
        call: UnitCall | None,
    ) -> None:
        mechanism = Mechanism.WEIGHTS
        if producer.node.overflowed_inside:
            mechanism = Mechanism.ACCUMULATION
        elif not producer.is_weight:
            mechanism = self._classifier.mechanism(producer.node, segment, reference, position)
        rows, positions = self._rows(producer, segment)
        names = [probe.name for probe in self._batch.probes]
        self._found.append(
            LocatedProducer(
                producer=producer,
                place=place,
                mechanism=mechanism,
                probes=tuple(names[row] for row in rows),
                first_positions={names[row]: each for row, each in positions.items()},
                entry=self._entry(call, producer, segment, rows),
            )
        )

    def _entry(
        self,
        call: UnitCall | None,
        producer: Producer,
        segment: Segment,
        rows: tuple[int, ...],
    ) -> Entry | None:
        """How the unit was called, of the first few that break."""
        if not self._keeps_entries or call is None or not call.unit.is_block:
            return None
        if len(self._found) >= MOST_ENTRIES:
            return None
        ran = segment.nodes[: producer.node.index + 1]
        return Entry.of(call, rows=rows, modules=[each.module for each in ran])

    def _rows(self, producer: Producer, segment: Segment) -> tuple[tuple[int, ...], dict[int, int]]:
        """Rows of the batch it happened in, and the first real token of each.

        Where the operation's own do not tell (experts hold tokens in their own order), those of
        the unit's output that are not finite.
        """
        node = producer.node
        unit = "" if self.call is None else self.call.unit.name
        is_sorted = node.index in routed_nodes(segment) and node.module != unit
        if producer.rows and not is_sorted:
            return producer.rows, producer.positions
        hidden = None if self.call is None else self.call.hidden_states
        if hidden is None:
            return (), {}
        broken = ~hidden.isfinite()
        return self._real_tokens.rows_with(broken), self._real_tokens.first_positions(broken)

    # Comparing with the baseline.

    def _place(self, unit: Unit) -> Location:
        layer = self._num_blocks.get(unit.section, 0) if _has_row(unit) else None
        return Location(order=self._order, layer=layer, section=unit.section)

    def _partner_call(self, call: UnitCall) -> UnitCall | None:
        known = None if self._reference is None else self._reference.call
        return known if known is not None and known.unit is call.unit else None

    def _partner(self, call: UnitCall) -> Segment | None:
        known = self._partner_call(call)
        return None if known is None else known.segment

    def _compare(self, call: UnitCall, place: Location) -> None:
        base = None if self._baseline is None else self._baseline.call
        if base is not None and base.unit is not call.unit:
            base = None
        if call.unit.is_block and self._same_routing is not None:
            self._same_routing = self._reached_by(self._same_routing)
        agrees = None if base is None else self._routing(call.segment, base.segment)
        if agrees is not None:
            self._same_routing = (
                agrees if self._same_routing is None else self._same_routing & agrees
            )
        hidden = call.hidden_states
        if hidden is None or place.layer is None:
            return
        theirs = None if base is None else base.hidden_states
        self._totals.add_layer(
            index=place.layer,
            section=place.section,
            module=call.unit.name,
            tokens=self._real_tokens.tokens(hidden),
            reference=None if theirs is None else self._real_tokens.tokens(theirs),
            same_routing=self._same_routing,
            agrees=agrees,
        )

    def _reached_by(self, same_routing: Tensor) -> Tensor:
        """Without the tokens that attention lets see one that was sent elsewhere before."""
        if same_routing.numel() != self._batch.num_real_tokens:
            return same_routing
        rows = same_routing.split([probe.num_tokens for probe in self._batch.probes])
        if self._layout.is_causal:
            return torch.cat([row.long().cummin(dim=0).values.bool() for row in rows])
        return torch.cat([row.all().expand_as(row) for row in rows])

    def _routing(self, segment: Segment, base: Segment) -> Tensor | None:
        """Which real tokens the unit's router sent to the same experts; None without a router."""
        if not segment.routes or not base.routes:
            return None
        if segment.routes[-1].shape != base.routes[-1].shape:
            return None
        agrees = routing_agreement(segment.routes[-1], base.routes[-1])
        if agrees.numel() != self._batch.input_ids.numel():
            return None
        mask = self._batch.attention_mask
        return agrees if mask is None else agrees[mask.flatten().bool().cpu()]

    def _add_peaks(
        self, segment: Segment, reference: Segment | None, place: Location, position: SegmentRole
    ) -> None:
        for each in segment.nodes:
            self._totals.sums.add(each)
        if reference is None:
            return
        for node, abs_max, mechanism in self._classifier.peaks(segment, reference, position):
            self._totals.peaks.add(node=node, abs_max=abs_max, mechanism=mechanism, place=place)

    def _add_fused_scores(self, segment: Segment, place: Location) -> None:
        """What eager attention would hold, from the query and key that the fused one is given."""
        if self._reference is None and self._skeleton.dtype.is_reference:
            for node, query, key in segment.scores:
                abs_max = None if self._batch.is_padded else raw_score_abs_max(query, key)
                if abs_max is not None:
                    self._totals.fused_scores.add(
                        node=node,
                        abs_max=abs_max,
                        mechanism=Mechanism.ATTENTION_SCORES,
                        place=place,
                    )
        segment.scores.clear()

    def _finish(self, *, has_logits: bool) -> None:
        """Compares the output, and says which producers reached it."""
        if self.final is None:
            return
        reached = CLEAN
        if self._reference is None:
            broken = tensor_stats(self._real_tokens.tokens(self.final)).num_nonfinite > 0
            self._totals.reference_nonfinite |= broken
        elif self._reference.final is not None:
            found = unexpected_in(self.final, self._reference.final)
            if found is not None and bool(self._real_tokens.tokens(found).any()):
                self._totals.reaches_output = True
                reached = self._outside.sources(self.final)
                self._totals.symptom = self._totals.symptom or symptom_of(
                    self.final, found, decode=self._decode
                )
        self._hand_over(reached)
        if self._witness is not None:
            self._witness.record_output(self._skeleton, self._batch, self.final)
        if has_logits:
            self._add_logits(self.final)

    def _hand_over(self, reached: frozenset[int]) -> None:
        """The producers; absorbed are those whose elements are not in ``reached``."""
        is_reference = self._reference is None
        self._totals.found += [
            (each, not is_reference and each.producer.identity not in reached)
            for each in self._found
        ]
        self._is_finished = True

    def _add_logits(self, logits: Tensor) -> None:
        self._totals.logits = self._totals.logits or LogitsTotals()
        self._totals.logits.add(
            logits,
            None if self._baseline is None else self._baseline.final,
            batch=self._batch,
            is_causal=self._layout.is_causal and not self._skeleton.is_encoder_decoder,
            same_routing=self._same_routing,
        )

    def _new_watcher(self) -> OpWatcher:
        return OpWatcher(
            stack=self._stack,
            weights=self._skeleton.weights,
            real_tokens=self._real_tokens,
            check=self._check,
            products=self._products,
            device=self._batch.input_ids.device,
        )

    def _examiner(self, reference: ReferenceOps | None) -> Examiner:
        return Examiner(
            reference=reference,
            real_tokens=self._real_tokens,
            weight_faults=self._skeleton.weight_faults,
            next_identity=self._totals.next_identity,
        )


def _has_row(unit: Unit) -> bool:
    """Whether the report has a row of it: layers, and what projects a tower's result."""
    return unit.is_block or unit.section is Section.PROJECTOR


def _handing_on(output: Any) -> Callable[..., Any]:
    """A forward that returns what another block returned."""

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return output

    return forward
