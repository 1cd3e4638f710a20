"""One scan, step by step."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from torch import nn

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.source import Checkpoint
from precheck.errors import (
    CheckpointError,
    MemoryExhaustedError,
    PrecheckError,
    ScanInterrupted,
    UnsupportedModelError,
    WeightsElsewhereError,
)
from precheck.measure.blame.mechanisms import Classifier
from precheck.measure.blame.peaks import Peaks, headroom_rows
from precheck.measure.budget import FREE_SHARE, activation_bytes
from precheck.measure.capsule.write import candidate, write_capsule
from precheck.measure.estimate import estimate_seconds
from precheck.measure.lockstep.batch_run import BatchRun
from precheck.measure.lockstep.clock import LOGIT_WORK, Clock
from precheck.measure.lockstep.generation import generate
from precheck.measure.lockstep.run_totals import RunTotals
from precheck.measure.machine.devices import resolve_device
from precheck.measure.machine.environment import read_environment
from precheck.measure.machine.memory import free_bytes, used_bytes
from precheck.measure.machine.torch_settings import uncompiled
from precheck.measure.models.configurations import build_groups
from precheck.measure.models.kept import kept_modules
from precheck.measure.models.loading import SEED
from precheck.measure.models.resident import LiveModels, ResidentModels
from precheck.measure.models.streamed import StreamedModels
from precheck.measure.probes.media_batches import Processor
from precheck.measure.probes.tokens import (
    Plan,
    generation_batches,
    plan_probes,
    with_decoder_input,
)
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.measure.processes import is_first_process, processes
from precheck.measure.subject.subject import (
    Subject,
    declared_dtype,
    decoder_start,
    model_facts,
    stored_bytes,
    subject_name,
    tensor_sizes,
    vocab_size,
)
from precheck.records.configuration import Configuration
from precheck.records.precision import Accumulation, Dtype
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted, duration, num_bytes
from precheck.records.report import Measurements, deployed_dtype
from precheck.records.traces import TOWERS, Coverage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.request import Request
    from precheck.records.traces import Generation

KERNELS_ADD_UP_IN_FLOAT16 = frozenset({"gptq", "awq"})
"""Quantisations whose kernels may: exllama v2 (https://github.com/QwenLM/Qwen3/issues/951) and
AutoAWQ's (https://github.com/casper-hansen/AutoAWQ/issues/458)."""

WAVE_TOKENS = 2048
"""Batches run together up to here: all runs wait with the hidden states of all of them."""

WAVE_BATCHES = 16
"""Every run over every batch has a thread and modules of its own."""

INSTRUMENTATION = (
    "a TorchDispatchMode and forward hooks were active: fusions that need neither are switched off"
)


class Scan:
    """One scan, step by step; each method needs the one before it."""

    def __init__(self, subject: Subject, request: Request, *, observe: Observer) -> None:
        self._subject = subject
        self._request = request
        self._device = resolve_device(request.device)
        self._observe = observe
        observe(Announcement(text=f"scanning {subject_name(subject)}{_size(subject)}"))
        self._tensor_dtypes = tensor_sizes(subject)
        self._weights = _weights_of(subject, device=self._device, is_resident=request.is_resident)
        self._uncompiled = ExitStack()
        self._found: dict[int, list[RunTotals]] = {}
        """For each batch, what each run gathered."""
        self._done: set[int] = set()
        """Batches that every run has come to an end of."""
        self._to_continue: tuple[Batch, ...] = ()
        """Prompts that every run writes something behind."""
        self._written: list[tuple[Generation, ...]] = []
        """For each run, what it wrote."""
        self._incomplete_reason: str | None = None
        self._stopped_by: PrecheckError | None = None
        """What stopped this process's share."""

    def close(self) -> None:
        """Gives back threads and files."""
        self._uncompiled.close()
        self._weights.close()

    def prepare(self) -> None:
        """Makes the model of every configuration."""
        default = self._weights.default_attention()
        self._groups, self._failed = build_groups(
            self._weights,
            dtypes=self._request.dtypes,
            attn_implementations=self._request.attn_implementations,
            required=self._request.required or self._deployed(default),
            device=self._device,
            accumulations=self._accumulations(),
        )
        self._uncompiled.enter_context(uncompiled())  # code of a checkpoint may have compiled
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

    def _accumulations(self) -> frozenset[Accumulation]:
        """Both by default where kernels for packed weights are used; some add up in float16."""
        asked = self._request.accumulations
        if asked is not None:
            return frozenset(asked)
        quantization = self._subject.quantization if isinstance(self._subject, Checkpoint) else None
        is_packed = quantization is not None and quantization.method in KERNELS_ADD_UP_IN_FLOAT16
        return frozenset(Accumulation) if is_packed else frozenset({Accumulation.FLOAT32})

    def _deployed(self, default_attention: str) -> tuple[Configuration, ...]:
        """What ``from_pretrained(dtype="auto")`` would run: the gate's configuration."""
        dtype = deployed_dtype(declared_dtype(self._subject), self._tensor_dtypes)
        if dtype not in set(Dtype):
            return ()
        return (Configuration(dtype=Dtype(dtype), attn_implementation=default_attention),)

    def plan(self) -> None:
        """Makes the batches."""
        checkpoint = self._subject if isinstance(self._subject, Checkpoint) else None
        reference = self._groups[0].reference
        size = vocab_size(self._model)
        self._vocabulary = read_vocabulary(checkpoint, size=size)
        processor = Processor(checkpoint, accepts=reference.accepts, vocab_size=size)
        plan = plan_probes(
            self._vocabulary,
            processor,
            prompts=self._request.prompts,
            builtin_probes=self._request.builtin_probes,
            quick=self._request.quick,
            max_context=self._facts.max_context,
        )
        if reference.is_encoder_decoder:
            start = decoder_start(self._model)
            plan = Plan(
                batches=tuple(
                    each if each.media else with_decoder_input(each, start_id=start)
                    for each in plan.batches
                ),
                not_run=plan.not_run,
            )
        self._plan = plan
        if self._request.num_generated:
            self._to_continue = generation_batches(
                self._vocabulary,
                processor,
                prompts=self._request.prompts if self._request.continues_own else None,
                max_context=self._facts.max_context,
            )

    def plan_memory(self) -> None:
        """Decides what is in memory at once, and says what the scan will do."""
        used = used_bytes(self._device)
        limit = self._request.max_memory or used + int(FREE_SHARE * free_bytes(self._device))
        first = self._waves(range(len(self._plan.batches)))[0]
        used += activation_bytes([self._plan.batches[each] for each in first], self._skeletons)
        held = self._weights.plan_memory(self._layout, limit=limit, used=used)
        self._memory_limit = limit
        self._observe(Announcement(text=self._what_comes()))
        self._observe(Announcement(text=held))

    def run(self) -> None:
        """All batches through all runs, in lockstep.

        What stops all runs (a checkpoint that changes, memory that runs out) makes the scan
        incomplete; what was measured until then stays.

        Raises:
            PrecheckError: all runs were stopped before anything was measured.
            ScanInterrupted: Ctrl-C, with what was measured until then.
            WeightsElsewhereError: this model runs with all weights in memory only.
        """
        try:
            with processes(self._device) as everybody:
                mine = everybody.share([each.num_real_tokens for each in self._plan.batches])
                self._run_batches(mine)
                found = (self._found, self._done, self._incomplete_reason)
                for theirs, done, reason in everybody.exchange(found):
                    self._found |= theirs
                    self._done |= done
                    self._incomplete_reason = self._incomplete_reason or reason
            self._write()
            self._write_capsule()
        except KeyboardInterrupt as error:
            self._break_off("interrupted")
            raise ScanInterrupted(self.measurements()) from error
        except WeightsElsewhereError:
            raise
        except PrecheckError as error:
            self._stop(error)
        if self._stopped_by is not None and not self._has_layers():
            raise self._stopped_by

    def _write(self) -> None:
        """Lets every run write; each of several processes does, and one of them reports."""
        if self._incomplete_reason is not None or not self._to_continue:
            return
        number = self._request.num_generated
        self._observe(
            Announcement(
                text=f"writing {counted(number, 'token')} behind "
                f"{counted(len(self._to_continue), 'prompt')}, greedily and sampled"
            )
        )
        written: list[tuple[Generation, ...]] = [() for _ in self._skeletons]
        for batch in self._to_continue:
            found = generate(
                batch.to(self._device),
                self._groups,
                num_tokens=number,
                weights=self._weights,
                layout=self._layout,
                decode=self._vocabulary.decode,
            )
            written = [before + now for before, now in zip(written, found, strict=True)]
        self._written = written

    def _write_capsule(self) -> None:
        """The layer that overflows, for somebody without the model; one of several processes."""
        folder = self._request.capsule
        if folder is None or not is_first_process():
            return
        totals = self._merged()
        pairs = zip(self._skeletons, (each.producers for each in totals), strict=True)
        found = candidate(pairs)
        if found is None:
            said = "no capsule: no decoder layer overflowed"
        else:
            said = write_capsule(folder, found, weights=self._weights)
        self._observe(Announcement(text=said))

    def _has_layers(self) -> bool:
        return any(each.layers for totals in self._found.values() for each in totals)

    def _run_batches(self, mine: list[int]) -> None:
        classifier = Classifier()
        clock = self._clock(mine)
        try:
            for wave in self._waves(mine):
                run = BatchRun(
                    [self._plan.batches[index].to(self._device) for index in wave],
                    self._groups,
                    weights=self._weights,
                    layout=self._layout,
                    classifier=classifier,
                    decode=self._vocabulary.decode,
                    clock=clock,
                    memory_limit=self._memory_limit,
                    keeps_entries=self._request.capsule is not None,
                    witness=self._request.witness,
                )
                try:
                    run.go()
                finally:
                    self._found |= dict(zip(wave, run.totals, strict=True))
                    self._done |= set(wave[: run.num_done])
        except (CheckpointError, MemoryExhaustedError) as error:
            self._stop(error)

    def _stop(self, error: PrecheckError) -> None:
        self._stopped_by = error
        self._break_off(error.message)

    def _break_off(self, reason: str) -> None:
        self._incomplete_reason = reason
        for totals in self._found.values():
            for each in totals:
                if not each.reaches_output:  # what is not broken yet may break in what is left
                    each.failure = each.failure or reason

    def _waves(self, batches: Iterable[int]) -> list[list[int]]:
        """Batches that run at once: as many as keep the hidden states of all runs small."""
        sizes = [each.num_positions for each in self._plan.batches]
        waves: list[list[int]] = []
        for index in batches:
            tokens = sizes[index] + sum(sizes[each] for each in (waves[-1] if waves else ()))
            if not waves or tokens > WAVE_TOKENS or len(waves[-1]) == WAVE_BATCHES:
                waves.append([])
            waves[-1].append(index)
        return waves

    def _clock(self, batches: list[int]) -> Clock:
        num_runs = len(self._skeletons)
        is_streamed = isinstance(self._weights, StreamedModels)
        return Clock(
            self._observe,
            work={unit.name: _work(self._model, unit.name) for unit in self._layout.units},
            num_tokens={
                unit.name: num_runs
                * sum(
                    batch.num_media_positions if unit.section in TOWERS else batch.input_ids.numel()
                    for batch in (self._plan.batches[each] for each in batches)
                )
                for unit in self._layout.units
            },
            round_steps=num_runs * max(map(len, self._waves(batches)), default=0),
            bytes_read=lambda: self._weights.bytes_read,
            total_bytes=stored_bytes(self._subject) if is_streamed else 0,
        )

    def _what_comes(self) -> str:
        facts, plan, skeletons = self._facts, self._plan, self._skeletons
        seconds = estimate_seconds(
            num_parameters=facts.num_parameters,
            num_tokens=plan.num_tokens,
            skeletons=skeletons,
            device=self._device,
        )
        return (
            f"{facts.num_parameters / 1e6:,.1f} M parameters, {plan.num_tokens:,} tokens in "
            f"{counted(len(plan.probes), 'probe')}, {counted(len(skeletons), 'run')} on "
            f"{self._device}: about {duration(seconds)} of matrix products"
        )

    def measurements(self) -> Measurements:
        """What was measured so far."""
        totals = self._merged()
        is_complete = self._incomplete_reason is None
        done = [each for index, each in enumerate(self._plan.batches) if index in self._done]
        left = [each for index, each in enumerate(self._plan.batches) if index not in self._done]
        lengths = [probe.num_tokens for batch in done for probe in batch.probes]
        loading = self._weights.loading
        kept = self._kept()
        return Measurements(
            model=self._facts,
            checkpoint=replace(
                self._weights.audit(is_complete=is_complete),
                missing=loading.missing,
                unexpected=loading.unexpected,
                mismatched=loading.mismatched,
                kept_in_float32=tuple(kept),
                num_kept_in_float32=sum(kept.values()),
            ),
            environment=read_environment(),
            probes=self._plan.probes,
            coverage=Coverage(
                num_ops_watched=sum(each.num_watched for each in totals),
                unwatched_ops=dict(
                    sorted(sum((each.unwatched for each in totals), Counter()).items())
                ),
                probes_not_run=(
                    *self._plan.not_run,
                    *(f"{probe.name} (not finished)" for batch in left for probe in batch.probes),
                ),
                longest_probe_tokens=max(lengths, default=0),
                num_tokens=sum(lengths),
                instrumentation=INSTRUMENTATION,
            ),
            runs=(
                *(
                    each.trace(skeleton, device=self._device, generations=generations)
                    for each, skeleton, generations in zip(
                        totals,
                        self._skeletons,
                        self._written or [() for _ in totals],
                        strict=True,
                    )
                ),
                *self._failed,
            ),
            headroom=headroom_rows(self._peaks(totals)),
            seed=SEED,
            complete=is_complete,
            incomplete_reason=self._incomplete_reason,
        )

    @property
    def _skeletons(self) -> list[Skeleton]:
        return [each for group in self._groups for each in group.skeletons]

    def _merged(self) -> list[RunTotals]:
        """What each run gathered, batch after batch."""
        nothing = [RunTotals.of(each) for each in self._skeletons]
        batches = [self._found[index] for index in sorted(self._found)] or [nothing]
        return [reduce(RunTotals.merge, of_run) for of_run in zip(*batches, strict=True)]

    def _peaks(self, totals: list[RunTotals]) -> list[Peaks]:
        """Peaks of the 16-bit runs; scores that only fused attention saw count for eager."""
        pairs = list(zip(self._skeletons, totals, strict=True))
        found = [each.peaks for skeleton, each in pairs if not skeleton.dtype.is_reference]
        if any(group.reference.attn_implementation == "eager" for group in self._groups):
            return found
        references = {id(group.reference) for group in self._groups}
        return found + [
            Peaks(dtype=dtype, attn_implementation="eager", found=each.fused_scores.found)
            for skeleton, each in pairs
            if id(skeleton) in references
            for dtype in {each.dtype for each in found}
        ]

    def _kept(self) -> dict[str, int]:
        for each in self._skeletons:
            if each.dtype is Dtype.FLOAT16:
                return kept_modules(each.model)
        return {}


def _weights_of(subject: Subject, *, device: str, is_resident: bool) -> SharedModels:
    if not isinstance(subject, Checkpoint):
        return LiveModels(subject, device=device)
    is_opaque = subject.quantization is not None and not subject.quantization.is_decoded_here
    if is_resident or is_opaque:
        return ResidentModels(subject, device=device)
    return StreamedModels(subject, device=device)


def _work(model: nn.Module, unit: str) -> float:
    """Multiplications for one token: parameters but for those that are only looked up."""
    looked_up = {
        id(each.weight)
        for each in model.get_submodule(unit).modules()
        if isinstance(each, nn.Embedding)
    }
    parameters = model.get_submodule(unit).parameters()
    products = sum(each.numel() for each in parameters if id(each) not in looked_up)
    module = model.get_submodule(unit)
    logits = module.out_features if isinstance(module, nn.Linear) else 0
    return float(products + LOGIT_WORK * logits)


def _size(subject: Subject) -> str:
    size = stored_bytes(subject)
    return f" ({num_bytes(size)})" if size else ""
