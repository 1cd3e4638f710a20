"""The probe room's one entry: a checkpoint or a live module in, measurements out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from precheck.checkpoint.architecture import Architecture, find_architecture
from precheck.checkpoint.source import Checkpoint
from precheck.errors import MemoryExhaustedError, ScanInterrupted, UnsupportedModelError
from precheck.probe.classify import Classifier
from precheck.probe.configurations import build_groups, check_attention_name
from precheck.probe.environment import exact_float32, read_environment, resolve_device
from precheck.probe.estimate import estimate_seconds
from precheck.probe.facts import (
    Subject,
    declared_dtype,
    decoder_start,
    main_name,
    model_facts,
    read_checkpoint,
    subject_name,
    vocab_size,
)
from precheck.probe.lockstep import Worker, advance
from precheck.probe.overflows import Peaks, headroom_rows
from precheck.probe.residency import (
    SEED,
    CheckpointWeights,
    LiveWeights,
    Weights,
    kept_modules,
)
from precheck.probe.run_totals import RunTotals
from precheck.probe.run_watch import RunWatch
from precheck.probe.skeleton import Skeleton, first_line
from precheck.probe.tokens import Plan, Vocabulary, plan_probes, read_vocabulary, with_decoder_input
from precheck.records.precision import Configuration, Dtype
from precheck.records.progress import Announcement, Observer, Step
from precheck.records.quantities import counted, duration, num_bytes
from precheck.records.report import Measurements
from precheck.records.traces import Coverage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.probe.batches import Batch

INSTRUMENTATION = (
    "a TorchDispatchMode and forward hooks were active: fusions that need neither are switched off"
)


def measure(
    subject: Subject,
    *,
    dtypes: tuple[Dtype, ...],
    attn_implementations: tuple[str, ...] | None,
    required: tuple[Configuration, ...],
    prompts: Sequence[str | Sequence[int]] | None,
    builtin_probes: bool,
    quick: bool,
    device: str,
    observe: Observer,
) -> Measurements:
    """Everything a scan measures; the arguments are those of ``precheck.scan``.

    A live module is left as it was: hooks and modes go onto copies.

    Raises:
        PrecheckError: the scan cannot start, or cannot go on.
        ScanInterrupted: Ctrl-C; ``partial`` is what was measured until then.
    """
    is_trusted = isinstance(subject, Checkpoint) and subject.trust_remote_code
    for name in (*(attn_implementations or ()), *(each.attn_implementation for each in required)):
        check_attention_name(name, trust_remote_code=is_trusted)
    place = resolve_device(device)
    with exact_float32():
        scan = _Scan(subject, device=place, observe=observe)
        scan.prepare(dtypes=dtypes, attn_implementations=attn_implementations, required=required)
        scan.plan(prompts=prompts, builtin_probes=builtin_probes, quick=quick)
        scan.run()
        return scan.measurements()


class _Scan:
    """One scan, step by step; each method needs the one before it."""

    def __init__(self, subject: Subject, *, device: str, observe: Observer) -> None:
        self._subject = subject
        self._device = device
        self._observe = observe
        self._audit, self._tensor_dtypes, num_parameters = read_checkpoint(subject)
        self._weights: Weights = (
            CheckpointWeights(subject, device=device, num_parameters=num_parameters)
            if isinstance(subject, Checkpoint)
            else LiveWeights(subject, device=device)
        )
        self._num_batches_run = 0
        self._incomplete_reason: str | None = None

    def prepare(
        self,
        *,
        dtypes: tuple[Dtype, ...],
        attn_implementations: tuple[str, ...] | None,
        required: tuple[Configuration, ...],
    ) -> None:
        """Loads the model of every configuration."""
        size = f" ({num_bytes(self._audit.size_bytes)})" if self._audit.size_bytes else ""
        self._observe(Announcement(text=f"loading {subject_name(self._subject)}{size}"))
        default = self._weights.default_attention()
        self._groups, self._failed = build_groups(
            self._weights,
            dtypes=dtypes,
            attn_implementations=attn_implementations,
            required=required or self._deployed(default),
            device=self._device,
        )
        if not self._groups:
            raise UnsupportedModelError(
                f"no run is possible: {self._failed[0].failure}",
                hint=f"use --attn {default}",
            )
        self._model = self._groups[0].reference.model
        self._layout = find_architecture(self._model)
        self._facts = model_facts(
            self._subject,
            model=self._model,
            layout=self._layout,
            sizes=self._tensor_dtypes,
            default_attention=default,
        )
        self._totals = [
            [RunTotals(skeleton) for skeleton in group.skeletons] for group in self._groups
        ]

    def _deployed(self, default_attention: str) -> tuple[Configuration, ...]:
        """What ``from_pretrained(dtype="auto")`` would run: the gate's configuration."""
        dtype = declared_dtype(self._subject) or main_name(self._tensor_dtypes)
        if dtype not in set(Dtype):
            return ()
        return (Configuration(dtype=Dtype(dtype), attn_implementation=default_attention),)

    def plan(
        self, *, prompts: Sequence[str | Sequence[int]] | None, builtin_probes: bool, quick: bool
    ) -> None:
        """Makes the batches, and says what the scan will do."""
        checkpoint = self._subject if isinstance(self._subject, Checkpoint) else None
        self._vocabulary = read_vocabulary(checkpoint, size=vocab_size(self._model))
        plan = plan_probes(
            self._vocabulary,
            prompts=prompts,
            builtin_probes=builtin_probes,
            quick=quick,
            max_context=self._facts.max_context,
        )
        if self._groups[0].reference.is_encoder_decoder:
            start = decoder_start(self._model)
            plan = Plan(
                batches=tuple(with_decoder_input(each, start_id=start) for each in plan.batches),
                not_run=plan.not_run,
            )
        self._plan = plan

    def run(self) -> None:
        """All batches through all runs, in lockstep.

        Raises:
            ScanInterrupted: Ctrl-C, with what was measured until then.
        """
        classifier = Classifier()
        skeletons = [each.skeleton for each in self._all_totals]
        total = len(skeletons) * len(self._layout.units) * self._plan.num_tokens
        done = 0
        try:
            self._observe(Announcement(text=self._what_comes(skeletons)))
            for batch in self._plan.batches:
                counter = _Steps(
                    self._observe, weight=batch.num_real_tokens, done=done, total=total
                )
                self._run_batch(batch.to(self._device), classifier, counter)
                done += batch.num_real_tokens * len(skeletons) * len(self._layout.units)
                self._num_batches_run += 1
        except KeyboardInterrupt as error:
            self._incomplete_reason = "interrupted"
            raise ScanInterrupted(self.measurements()) from error

    def _what_comes(self, skeletons: list[Skeleton]) -> str:
        facts, plan = self._facts, self._plan
        seconds = estimate_seconds(
            num_parameters=facts.num_parameters,
            num_tokens=plan.num_tokens,
            dtypes=[each.dtype for each in skeletons],
            device=self._device,
        )
        return (
            f"{facts.num_parameters / 1e6:,.1f} M parameters, {plan.num_tokens:,} tokens in "
            f"{counted(len(plan.probes), 'probe')}, {counted(len(skeletons), 'run')} on "
            f"{self._device}: about {duration(seconds)} of matrix products"
        )

    def _run_batch(self, batch: Batch, classifier: Classifier, counter: _Steps) -> None:
        watches: list[RunWatch] = []
        workers: list[tuple[RunTotals, Worker]] = []
        first: RunWatch | None = None
        for totals in self._totals:
            reference: RunWatch | None = None
            for each in totals:
                if each.failure is not None:
                    continue
                watch, worker = _worker(
                    each,
                    batch=batch,
                    layout=self._layout,
                    reference=reference,
                    baseline=reference or first,
                    classifier=classifier,
                    vocabulary=self._vocabulary,
                )
                reference = reference or watch
                first = first or watch
                watches.append(watch)
                workers.append((each, worker))
        try:
            advance([worker for _, worker in workers], counter.turn)
        finally:
            for watch in watches:
                watch.detach()
        for totals_of_run, worker in workers:
            if worker.error is not None:
                totals_of_run.failure = _failure(worker.error)
        self._fail_without_reference()

    def _fail_without_reference(self) -> None:
        for totals in self._totals:
            if totals[0].failure is not None:
                for each in totals[1:]:
                    each.failure = each.failure or (
                        f"the float32 reference failed: {totals[0].failure}"
                    )

    def measurements(self) -> Measurements:
        """What was measured so far."""
        runs = tuple(each.trace(device=self._device) for totals in self._totals for each in totals)
        left = self._plan.batches[self._num_batches_run :]
        not_run = tuple(f"{probe.name} (interrupted)" for batch in left for probe in batch.probes)
        longest = max((probe.num_tokens for probe in self._plan.probes), default=0)
        loading = self._weights.loading
        return Measurements(
            model=self._facts,
            checkpoint=replace(
                self._audit,
                missing=loading.missing,
                unexpected=loading.unexpected,
                mismatched=loading.mismatched,
                kept_in_float32=self._kept(),
            ),
            environment=read_environment(),
            probes=self._plan.probes,
            coverage=Coverage(
                num_ops_watched=sum(each.num_watched for each in self._all_totals),
                unwatched_ops=_summed(each.unwatched for each in self._all_totals),
                probes_not_run=(*self._plan.not_run, *not_run),
                longest_probe_tokens=longest,
                num_tokens=self._plan.num_tokens,
                instrumentation=INSTRUMENTATION,
            ),
            runs=(*runs, *self._failed),
            headroom=headroom_rows(self._peaks()),
            seed=SEED,
            complete=self._incomplete_reason is None,
            incomplete_reason=self._incomplete_reason,
        )

    @property
    def _all_totals(self) -> list[RunTotals]:
        return [each for totals in self._totals for each in totals]

    def _peaks(self) -> list[Peaks]:
        """Peaks of the 16-bit runs; scores that only fused attention saw count for eager."""
        found = [
            each.peaks for each in self._all_totals if each.skeleton.dtype is not Dtype.FLOAT32
        ]
        if any(group.reference.attn_implementation == "eager" for group in self._groups):
            return found
        return found + [
            Peaks(dtype=dtype, attn_implementation="eager", found=totals[0].fused_scores.found)
            for totals in self._totals
            for dtype in {each.dtype for each in found}
        ]

    def _kept(self) -> tuple[str, ...]:
        for each in self._all_totals:
            if each.skeleton.dtype is Dtype.FLOAT16:
                return kept_modules(each.skeleton.model)
        return ()


class _Steps:
    """Counts the steps of one batch for whoever watches the scan."""

    def __init__(self, observe: Observer, *, weight: int, done: int, total: int) -> None:
        self._observe = observe
        self._weight = weight
        self._done = done
        self._total = total

    def turn(self, worker: Worker) -> None:
        """A worker is about to go on."""
        if worker.is_entering:
            self._observe(
                Step(
                    run=worker.name,
                    unit=worker.standing_at,
                    done=min(self._done, self._total),
                    total=self._total,
                )
            )
            self._done += self._weight


def _worker(
    totals: RunTotals,
    *,
    batch: Batch,
    layout: Architecture,
    reference: RunWatch | None,
    baseline: RunWatch | None,
    classifier: Classifier,
    vocabulary: Vocabulary,
) -> tuple[RunWatch, Worker]:
    skeleton = totals.skeleton
    worker = Worker(
        name=f"{skeleton.dtype} + {skeleton.attn_implementation}",
        model=skeleton.model,
        units=layout.units,
    )
    watch = RunWatch(
        totals=totals,
        batch=batch,
        layout=layout,
        reference=reference,
        baseline=baseline,
        classifier=classifier,
        decode=vocabulary.decode,
        check=worker.turns.check,
    )
    worker.passenger = watch
    return watch, worker


def _failure(error: BaseException) -> str:
    """Why a run failed, in a line.

    Raises:
        MemoryExhaustedError: it ran out of memory, and so would the others.
    """
    if _is_out_of_memory(error):
        raise MemoryExhaustedError(
            f"out of memory during the scan: {first_line(error)}",
            hint="use --quick, fewer dtypes (--dtype) or another --device",
        ) from error
    return f"{type(error).__name__}: {first_line(error)}"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
