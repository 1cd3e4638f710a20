"""One run over one batch: watched, compared at every unit, and examined where it breaks."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from precheck.measure.blame.examine import ReferenceOps
from precheck.measure.blame.unit_call import UnitCall, hidden_states_in, logits_in, main_output
from precheck.measure.lockstep.attribution import Attribution
from precheck.measure.lockstep.figures.comparison import Comparison
from precheck.measure.lockstep.figures.positions import PositionTotals
from precheck.measure.lockstep.figures.run_totals import RunTotals
from precheck.measure.lockstep.segments import LocatedSegment, SegmentCounter
from precheck.measure.lockstep.skipping import SkippedBlocks
from precheck.measure.lockstep.turns import Worker
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.position_ops import PositionOps
from precheck.measure.watch.segment import Segment
from precheck.measure.watch.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from transformers import Cache

    from precheck.checkpoint.architecture import Unit
    from precheck.measure.lockstep.context import PassageContext
    from precheck.measure.models.presence import Presence
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.float16_sums import Float16Sums
    from precheck.measure.watch.rounded_products import RoundedProducts
    from precheck.measure.watch.segment import OpNode

    OnOp = Callable[[OpNode, list[Tensor], list[Tensor]], None]


class Passage:
    """One run over one batch, in a thread of its own.

    Args:
        skeleton: the run's model.
        batch: the probes, on the run's device.
        context: what all passages share.
        reference: the float32 run with the same attention, whose operations are matched with this
            run's; None for such a run itself.
        baseline: the run whose values this run's are compared with; None for the first.
        unformatted: of a run with a format, the same one without.
        products: computes matrix products where the device has no arithmetic for the dtype.
        presence: loads and frees the parameters of the model.
        cache: of a part of a text: the keys and values of what is before it, to which its own are
            added.
    """

    is_replaying = False
    call: UnitCall | None = None
    """The call of the unit that runs, or that ran last."""
    final: Tensor | None = None
    """The logits, or the main output of a model without a head."""

    def __init__(
        self,
        *,
        skeleton: Skeleton,
        batch: Batch,
        context: PassageContext,
        reference: Passage | None,
        baseline: Passage | None,
        unformatted: Passage | None,
        products: RoundedProducts | Float16Sums | None,
        presence: Presence,
        cache: Cache | None = None,
    ) -> None:
        self.skeleton, self.batch = skeleton, batch
        self.totals = RunTotals.of(skeleton)
        if batch.is_by_position:
            self.totals.positions = PositionTotals(batch.probes[0].num_tokens)
        self.between_ops, self.between_segment = ReferenceOps(), Segment()
        self._context = context
        self._reference, self._baseline = reference, baseline
        self._unformatted = unformatted
        self._products = products
        self._cache = cache
        self._real_tokens = batch.real_tokens
        self.worker = self._new_worker(presence)
        self._stack = ModuleStack(skeleton.model)
        self._watcher = self._new_watcher(
            buckets=batch.columns_by_bucket, on_op=self._op_witness() or self._position_ops()
        )
        self._counter = SegmentCounter()
        self._skipped = SkippedBlocks(skeleton.model, context.layout)
        self._comparison = Comparison(
            totals=self.totals,
            skeleton=skeleton,
            batch=batch,
            layout=context.layout,
            embedding=context.embedding,
        )
        self.attribution: Attribution = Attribution(
            totals=self.totals,
            skeleton=skeleton,
            batch=batch,
            context=context,
            reference=None if reference is None else reference.attribution,
            new_watcher=self._new_watcher,
            replaying=self._replaying,
        )

    def _new_worker(self, presence: Presence) -> Worker:
        return Worker(
            name=f"{self.skeleton.dtype} + {self.skeleton.attn_implementation}",
            model=self.skeleton.model,
            units=self._context.layout.units,
            presence=presence,
            workload=self,
        )

    def _new_watcher(
        self, *, buckets: Sequence[tuple[int, slice]] = (), on_op: OnOp | None = None
    ) -> OpWatcher:
        return OpWatcher(
            stack=self._stack,
            parameters=self.skeleton.parameters,
            real_tokens=self._real_tokens,
            check=self.worker.turns.check,
            products=self._products,
            device=self.batch.input_ids.device,
            on_op=on_op,
            buckets=buckets,
        )

    def _position_ops(self) -> OnOp | None:
        """What sees how a long text's positions are computed with, of a run in 16 bits."""
        if not self.batch.is_by_position or self.skeleton.dtype.is_reference:
            return None
        ops = PositionOps(self.batch.input_ids.shape[1])
        self.totals.position_ops = ops.found
        return ops.see

    def _op_witness(self) -> OnOp | None:
        witness = self._context.witness
        if witness is None or not self.skeleton.configuration.is_reference:
            return None
        return lambda node, tensors, outputs: witness.record_op(
            self.skeleton, node, tensors, outputs, self._real_tokens
        )

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        self.is_replaying = True
        try:
            yield
        finally:
            self.is_replaying = False

    def waits_for(self, other: Passage) -> bool:
        """Whether this run has yet to be compared with the output of ``other``."""
        compared_with = (self._reference, self._baseline, self._unformatted)
        return not self.attribution.is_finished and other in compared_with

    def release(self) -> None:
        """Frees what was kept for other runs to be compared with."""
        self.final = self.call = None
        self.between_ops = ReferenceOps()

    def detach(self) -> None:
        """Removes the hooks and completes the totals, also of a forward that was given up."""
        self._stack.detach()
        self._skipped.restore()
        self.attribution.finish_early([] if self.call is None else self.call.results)
        self.totals.num_watched = self._watcher.num_watched
        self.totals.unwatched = self._watcher.unwatched

    # The workload of its worker.

    def run(self) -> None:
        """Calls the model's own forward and compares its output."""
        self._open_between()
        with self._watcher:
            output = self.skeleton.forward(self.batch, cache=self._cache)
        self._close_between()
        logits = logits_in(output, self.skeleton.vocab_size)
        self.final = main_output(list(tensors_in(output))) if logits is None else logits
        self._finish(has_logits=logits is not None)

    def skips(self, unit: Unit) -> bool:
        """Whether a unit is no longer computed, because its output would be NaN everywhere."""
        return unit in self._skipped

    def enter_unit(self, unit: Unit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps the arguments of a unit and opens its segment."""
        self._close_between()
        self._watcher.paused = True
        if self._context.certificates is not None:
            self._context.certificates.enter(self.skeleton, unit.name)
        module = self.skeleton.model.get_submodule(unit.name)
        self.call = UnitCall.of(unit, module, args, kwargs, self.attribution.examiner)
        self._watcher.begin(hidden_states_in(list(tensors_in((args, kwargs)))))
        self._watcher.paused = False

    def leave_unit(self, unit: Unit, output: Any) -> None:
        """Closes the segment of a unit, compares it, and examines the unit if it broke."""
        call = self.call
        assert call is not None  # noqa: S101  units do not nest
        assert call.unit is unit  # noqa: S101
        self._watcher.paused = True
        call.leave(self._watcher.end(), output)
        self._record_segment(call.segment)
        partner = _call_of(self._reference, unit)
        located = LocatedSegment(
            segment=call.segment,
            reference=None if partner is None else partner.segment,
            location=self._counter.unit_location(unit),
            role=self._counter.unit_role(call),
            call=call,
        )
        sources = self.attribution.examine_unit(call, partner, located)
        self._compare(call, located)
        if sources:  # what is NaN everywhere stays so
            self._skipped.skip_if_all_nan(call)
            self.totals.stopped_after = self._skipped.after
        self._counter.pass_unit(unit)
        self._open_between()

    def _compare(self, call: UnitCall, located: LocatedSegment) -> None:
        self._comparison.add_unit(call, _call_of(self._baseline, call.unit), located.location)
        self.attribution.add_peaks(located)
        if self._reference is None and self.skeleton.dtype.is_reference:
            self.attribution.add_fused_scores(located)
            self.attribution.add_key_values(located)
        call.segment.scores.clear()  # the query and key of every fused attention

    # Between units, every operation is examined as it runs: there are few of them.

    def _open_between(self) -> None:
        outputs = [] if self.call is None else self.call.results
        self._watcher.begin(hidden_states_in(outputs))
        if self._reference is None:
            self.between_ops = ReferenceOps()
            self._watcher.examination = self.between_ops
        else:
            self.attribution.examiner.compare_with(self._reference.between_ops)
            self._watcher.examination = self.attribution.examiner
        self._watcher.paused = False

    def _close_between(self) -> None:
        self._watcher.paused = True
        self._watcher.examination = None
        segment = self.between_segment = self._watcher.end()
        self._record_segment(segment)
        if segment.nodes:
            section = self._context.layout.section_of(segment.nodes[-1].module)
            located = LocatedSegment(
                segment=segment,
                reference=None if self._reference is None else self._reference.between_segment,
                location=self._counter.between_location(section),
                role=self._counter.between_role(section),
                call=self.call,
            )
            self.attribution.add_between(located)
        self._counter.pass_between()
        self._watcher.paused = False

    def _record_segment(self, segment: Segment) -> None:
        if self._context.witness is not None:
            self._context.witness.record_segment(self.skeleton, segment)

    def _finish(self, *, has_logits: bool) -> None:
        if self.final is None:
            return
        reference = None if self._reference is None else self._reference.final
        self.attribution.judge_output(self.final, reference, has_logits=has_logits)
        if self._context.witness is not None:
            self._context.witness.record_output(self.skeleton, self.batch, self.final)
        baseline = None if self._baseline is None else self._baseline.final
        if has_logits:
            self._comparison.add_logits(self.final, baseline)
        if has_logits and self._unformatted is not None and self._unformatted.final is not None:
            self._comparison.add_format_loss(self.final, self._unformatted.final)
        if baseline is not None and not self._context.generates:
            self._comparison.add_answers(self.final, baseline, has_logits=has_logits)


def _call_of(passage: Passage | None, unit: Unit) -> UnitCall | None:
    """How another run called a unit; None if it does not wait there."""
    call = None if passage is None else passage.call
    return call if call is not None and call.unit is unit else None
