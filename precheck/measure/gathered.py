"""What all runs found, batch by batch, and the measurements that come of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING

from precheck.measure.blame.peaks import Peaks, headroom_rows
from precheck.measure.lockstep.figures.key_values import KeyValueTotals
from precheck.measure.lockstep.figures.operands import OperandTotals
from precheck.measure.lockstep.figures.run_totals import RunTotals
from precheck.measure.machine.environment import read_environment
from precheck.measure.models.from_pretrained import SEED
from precheck.measure.models.model_dtypes import kept_modules
from precheck.records.outcomes.coverage import Coverage
from precheck.records.outcomes.positions import LongText
from precheck.records.precision import Dtype
from precheck.records.report import Measurements

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.errors import PrecheckError
    from precheck.measure.bounds.certificates import RunBounds
    from precheck.measure.inputs import Inputs
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.prepared import Prepared
    from precheck.measure.probes.batch import Batch
    from precheck.records.configuration import Configuration
    from precheck.records.format_loss import FormatCulprits
    from precheck.records.stored import CheckpointAudit
    from precheck.records.traces import Generation, RunTrace

_REFUSED = "the model refuses it"
INSTRUMENTATION = (
    "a TorchDispatchMode and forward hooks were active, which switches some fusions off"
)


@dataclass(slots=True, kw_only=True)
class Gathered:
    """What all runs found so far: it grows batch by batch, so nothing is lost where a scan ends."""

    totals: dict[int, list[RunTotals]] = field(default_factory=dict)
    """What each run found in a batch, by the index of the batch."""
    finished: set[int] = field(default_factory=set)
    """Batches that every run has come to an end of."""
    generations: list[tuple[Generation, ...]] = field(default_factory=list)
    """What each run wrote; empty where nothing was to be written, or the scan ended before."""
    culprits: dict[Skeleton, FormatCulprits | None] = field(default_factory=dict)
    """Of runs whose format costs too much, what loses it."""
    bounds: dict[Configuration, RunBounds] = field(default_factory=dict)
    """What no input exceeds, by run; empty where it was not asked for."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Why a probe counts for nothing, by its name: the model refuses it, or memory ran out."""
    part_tokens: int | None = None
    """Tokens of each forward of the longest text; None where it was run at once."""
    row_by_row: str | None = None
    """Why batches were run one row at a time; None where none was."""
    incomplete_reason: str | None = None
    stopped_by: PrecheckError | None = None
    """The error that stopped all runs of this process."""

    @property
    def has_layers(self) -> bool:
        """Whether some run has passed a decoder layer."""
        return any(run.layers for runs in self.totals.values() for run in runs)

    def merged(self, skeletons: Sequence[Skeleton]) -> list[RunTotals]:
        """What each run found in all batches, merged in their order."""
        nothing = [RunTotals.of(skeleton) for skeleton in skeletons]
        batches = [self.totals[index] for index in sorted(self.totals)] or [nothing]
        return [reduce(RunTotals.merge, of_run) for of_run in zip(*batches, strict=True)]

    def replace_batch(
        self, index: int, rows: list[list[RunTotals]], *, failed: Sequence[str]
    ) -> None:
        """Puts what the rows of a batch gave, each run by itself, in the place of its totals.

        Those that the model refuses alone too (a text cut before its end token) are left out.
        """
        self.left_out |= dict.fromkeys(failed, _REFUSED)
        self.row_by_row = self.totals[index][0].failure
        self.totals[index] = [reduce(RunTotals.merge, of_run) for of_run in zip(*rows, strict=True)]

    def leave_out_refused(self, batches: Sequence[Batch]) -> None:
        """Leaves out texts that the model refuses in every row, where it takes others.

        An image that it cannot take stays a failure: nobody but the user's processor made it.
        """
        failed = [index for index, runs in self.totals.items() if runs[0].failure is not None]
        if len(failed) == len(self.totals):
            return
        for index in failed:
            if not batches[index].media:
                self.leave_out(index, batches[index], why=_REFUSED)

    def leave_out(self, index: int, batch: Batch, *, why: str) -> None:
        """Takes back what a batch gave: the scan says so, and is complete without it."""
        self.left_out |= {probe.name: why for probe in batch.probes}
        self.finished.add(index)
        self.totals.pop(index, None)

    def stop(self, error: PrecheckError) -> None:
        """Records the error that stopped all runs."""
        self.stopped_by = error
        self.break_off(error.message)

    def break_off(self, reason: str) -> None:
        """Makes the scan incomplete, and the runs that have not broken so far."""
        self.incomplete_reason = reason
        for runs in self.totals.values():
            for run in runs:
                # what stopped the scan may have been met by one of its runs first
                if not run.reaches_output and run.failure in {None, reason}:
                    run.failure, run.is_finished = reason, False


def measurements(prepared: Prepared, inputs: Inputs, gathered: Gathered) -> Measurements:
    """What was measured so far."""
    totals = gathered.merged(prepared.skeletons)
    is_complete = gathered.incomplete_reason is None
    return Measurements(
        model=prepared.facts,
        checkpoint=_checkpoint_audit(prepared, is_complete=is_complete),
        environment=read_environment(),
        probes=inputs.plan.probes,
        coverage=_coverage(inputs, gathered, totals),
        runs=(*_traces(prepared, gathered, totals), *prepared.failed),
        headroom=headroom_rows(_peaks(prepared, gathered, totals)),
        key_values=reduce(
            KeyValueTotals.merge, (run.key_values for run in totals), KeyValueTotals()
        ).rows(prepared.models.vector),
        operands=reduce(
            OperandTotals.merge, (run.operands for run in totals), OperandTotals()
        ).rows,
        seed=SEED,
        options=prepared.request.options,
        complete=is_complete,
        incomplete_reason=gathered.incomplete_reason,
    )


def _checkpoint_audit(prepared: Prepared, *, is_complete: bool) -> CheckpointAudit:
    halves = (run.model for run in prepared.skeletons if run.dtype is Dtype.FLOAT16)
    half = next(halves, None)
    kept = {} if half is None else kept_modules(half)
    audit = prepared.models.audit(is_complete=is_complete)
    return replace(
        prepared.models.loading.added_to(audit, prepared.reference.model),
        kept_in_float32=tuple(kept),
        num_kept_in_float32=sum(kept.values()),
    )


def _coverage(inputs: Inputs, gathered: Gathered, totals: Sequence[RunTotals]) -> Coverage:
    finished = [inputs.plan.batches[index] for index in sorted(gathered.finished)]
    unfinished = [
        batch for index, batch in enumerate(inputs.plan.batches) if index not in gathered.finished
    ]
    lengths = [
        probe.num_tokens
        for batch in finished
        for probe in batch.probes
        if probe.name not in gathered.left_out
    ]
    unwatched = sum((run.unwatched for run in totals), Counter[str]())
    return Coverage(
        num_ops_watched=sum(run.num_watched for run in totals),
        unwatched_ops=dict(sorted(unwatched.items())),
        probes_not_run=(
            *inputs.plan.not_run,
            *(f"{probe.name} (not finished)" for batch in unfinished for probe in batch.probes),
            *(f"{name} ({why})" for name, why in gathered.left_out.items()),
        ),
        longest_probe_tokens=max(lengths, default=0),
        num_tokens=sum(lengths),
        instrumentation=INSTRUMENTATION,
        long_text=_long_text(inputs, gathered),
        row_by_row=gathered.row_by_row,
    )


def _long_text(inputs: Inputs, gathered: Gathered) -> LongText | None:
    batch = inputs.plan.longest
    if batch is None or batch.probes[0].name in gathered.left_out:
        return None
    probe = batch.probes[0]
    return LongText(probe=probe.name, num_tokens=probe.num_tokens, part_tokens=gathered.part_tokens)


def _traces(prepared: Prepared, gathered: Gathered, totals: Sequence[RunTotals]) -> list[RunTrace]:
    generations = gathered.generations or [() for _ in totals]
    return [
        run.trace(
            skeleton,
            device=prepared.device,
            generations=written,
            culprits=gathered.culprits.get(skeleton),
            bounds=gathered.bounds.get(skeleton.configuration),
        )
        for run, skeleton, written in zip(totals, prepared.skeletons, generations, strict=True)
    ]


def _peaks(prepared: Prepared, gathered: Gathered, totals: Sequence[RunTotals]) -> list[Peaks]:
    """Peaks of the 16-bit runs; scores that only fused attention computes count for eager."""
    pairs = list(zip(prepared.skeletons, totals, strict=True))
    known = {configuration: run.bounds for configuration, run in gathered.bounds.items()}
    peaks = [
        replace(run.peaks, bounds=known.get(skeleton.configuration))
        for skeleton, run in pairs
        if not skeleton.dtype.is_reference
    ]
    if any(group.reference.attn_implementation == "eager" for group in prepared.groups):
        return peaks
    references = {id(group.reference) for group in prepared.groups}
    return peaks + [
        Peaks(dtype=dtype, attn_implementation="eager", found=run.fused_scores.found)
        for skeleton, run in pairs
        if id(skeleton) in references
        for dtype in {of_run.dtype for of_run in peaks}
    ]
