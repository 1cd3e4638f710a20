"""The probe room's one entry: a checkpoint or a live module in, measurements out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.source import Checkpoint
from precheck.errors import ScanInterrupted, UnsupportedModelError
from precheck.probe.batch_run import Steps, run_batch
from precheck.probe.classify import Classifier
from precheck.probe.configurations import build_groups, check_attention_name
from precheck.probe.environment import exact_float32, read_environment, resolve_device
from precheck.probe.estimate import estimate_seconds
from precheck.probe.facts import (
    Subject,
    declared_dtype,
    decoder_start,
    model_facts,
    read_checkpoint,
    subject_name,
    vocab_size,
)
from precheck.probe.loading import SEED, kept_modules, quiet_transformers
from precheck.probe.memory import is_out_of_memory, memory_error
from precheck.probe.overflows import Peaks, headroom_rows
from precheck.probe.residency import CheckpointWeights, LiveWeights, Weights
from precheck.probe.run_totals import RunTotals
from precheck.probe.tokens import Plan, plan_probes, with_decoder_input
from precheck.probe.vocabulary import read_vocabulary
from precheck.records.precision import Configuration, Dtype
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted, duration, num_bytes
from precheck.records.report import Measurements, deployed_dtype
from precheck.records.traces import Coverage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.probe.skeleton import Skeleton


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
    try:
        with exact_float32(), quiet_transformers():
            scan = _Scan(subject, device=resolve_device(device), observe=observe)
            scan.prepare(
                dtypes=dtypes, attn_implementations=attn_implementations, required=required
            )
            scan.plan(prompts=prompts, builtin_probes=builtin_probes, quick=quick)
            scan.run()
            return scan.measurements()
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise memory_error(error, doing="during the scan") from error
        raise


def check_request(
    *,
    attn_implementations: Sequence[str] | None,
    required: Sequence[Configuration],
    device: str,
    trust_remote_code: bool,
) -> None:
    """Refuses what no checkpoint could run with, before one is fetched.

    Raises:
        UsageError: an unknown attention implementation, or a device that is not here.
    """
    for name in (*(attn_implementations or ()), *(each.attn_implementation for each in required)):
        check_attention_name(name, trust_remote_code=trust_remote_code)
    resolve_device(device)


class _Scan:
    """One scan, step by step; each method needs the one before it."""

    def __init__(self, subject: Subject, *, device: str, observe: Observer) -> None:
        self._subject = subject
        self._device = device
        self._observe = observe
        observe(Announcement(text=f"reading {subject_name(subject)}{_size(subject)}"))
        self._audit, self._tensor_dtypes = read_checkpoint(subject)
        self._weights: Weights = (
            CheckpointWeights(subject, device=device)
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
        dtype = deployed_dtype(declared_dtype(self._subject), self._tensor_dtypes)
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
                steps = Steps(self._observe, weight=batch.num_real_tokens, done=done, total=total)
                run_batch(
                    batch.to(self._device),
                    self._totals,
                    layout=self._layout,
                    classifier=classifier,
                    decode=self._vocabulary.decode,
                    steps=steps,
                )
                done += batch.num_real_tokens * len(skeletons) * len(self._layout.units)
                self._num_batches_run += 1
        except KeyboardInterrupt as error:
            self._incomplete_reason = "interrupted"
            for each in self._all_totals:
                if not each.reaches_output:  # what is not broken yet may break in what is left
                    each.failure = each.failure or "interrupted"
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

    def measurements(self) -> Measurements:
        """What was measured so far."""
        runs = tuple(each.trace(device=self._device) for totals in self._totals for each in totals)
        done, left = (
            self._plan.batches[: self._num_batches_run],
            self._plan.batches[self._num_batches_run :],
        )
        not_run = tuple(f"{probe.name} (interrupted)" for batch in left for probe in batch.probes)
        lengths = [probe.num_tokens for batch in done for probe in batch.probes]
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
                longest_probe_tokens=max(lengths, default=0),
                num_tokens=sum(lengths),
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


def _size(subject: Subject) -> str:
    if not isinstance(subject, Checkpoint):
        return ""
    return f" ({num_bytes(sum(file.stat().st_size for file in subject.weight_files))})"


def _summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
