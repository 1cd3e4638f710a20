"""The probe room's one entry: a checkpoint or a live module in, measurements out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from precheck.checkpoint.architecture import Architecture, find_architecture
from precheck.checkpoint.audit import audit_weights, tensor_dtypes
from precheck.checkpoint.source import Checkpoint
from precheck.checkpoint.weights import Weights as StoredWeights
from precheck.errors import MemoryExhaustedError, ScanInterrupted, UnsupportedModelError
from precheck.probe.classify import Classifier
from precheck.probe.configurations import build_groups, check_attention_name
from precheck.probe.environment import exact_float32, read_environment, resolve_device
from precheck.probe.lockstep import Worker, advance
from precheck.probe.overflows import Peaks, headroom_rows
from precheck.probe.residency import (
    SEED,
    CheckpointWeights,
    LiveWeights,
    Weights,
    kept_modules,
    main_dtype,
)
from precheck.probe.run_totals import RunTotals
from precheck.probe.run_watch import RunWatch
from precheck.probe.skeleton import first_line
from precheck.probe.tokens import Plan, Vocabulary, plan_probes, read_vocabulary, with_decoder_input
from precheck.records.precision import Configuration, Dtype
from precheck.records.progress import Announcement, Observer, Step
from precheck.records.report import CheckpointAudit, Measurements, ModelFacts
from precheck.records.traces import Coverage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.probe.batches import Batch

INSTRUMENTATION = (
    "a TorchDispatchMode and forward hooks were active: fusions that need neither are switched off"
)


def measure(
    subject: Checkpoint | nn.Module,
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

    def __init__(self, subject: Checkpoint | nn.Module, *, device: str, observe: Observer) -> None:
        self._subject = subject
        self._device = device
        self._observe = observe
        self._audit, self._tensor_dtypes, num_parameters = _read_checkpoint(subject)
        self._weights: Weights = (
            CheckpointWeights(subject, device=device, num_parameters=num_parameters)
            if isinstance(subject, Checkpoint)
            else LiveWeights(subject, device=device)
        )
        self._incomplete_reason: str | None = None

    def prepare(
        self,
        *,
        dtypes: tuple[Dtype, ...],
        attn_implementations: tuple[str, ...] | None,
        required: tuple[Configuration, ...],
    ) -> None:
        """Loads the model of every configuration."""
        self._observe(Announcement(text=f"loading {self._id}"))
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
        self._facts = self._model_facts(default)
        self._totals = [
            [RunTotals(skeleton) for skeleton in group.skeletons] for group in self._groups
        ]

    def _deployed(self, default_attention: str) -> tuple[Configuration, ...]:
        """What ``from_pretrained(dtype="auto")`` would run: the gate's configuration."""
        dtype = _declared_dtype(self._subject) or _main_name(self._tensor_dtypes)
        if dtype not in set(Dtype):
            return ()
        return (Configuration(dtype=Dtype(dtype), attn_implementation=default_attention),)

    def plan(
        self, *, prompts: Sequence[str | Sequence[int]] | None, builtin_probes: bool, quick: bool
    ) -> None:
        """Makes the batches, and says what the scan will do."""
        checkpoint = self._subject if isinstance(self._subject, Checkpoint) else None
        self._vocabulary = read_vocabulary(checkpoint, size=_vocab_size(self._model))
        plan = plan_probes(
            self._vocabulary,
            prompts=prompts,
            builtin_probes=builtin_probes,
            quick=quick,
            max_context=self._facts.max_context,
        )
        if self._groups[0].reference.is_encoder_decoder:
            start = _decoder_start(self._model)
            plan = Plan(
                batches=tuple(with_decoder_input(each, start_id=start) for each in plan.batches),
                not_run=plan.not_run,
            )
        self._plan = plan
        num_runs = sum(len(group.skeletons) for group in self._groups)
        self._observe(
            Announcement(
                text=(
                    f"{self._facts.num_parameters / 1e6:,.1f} M parameters, "
                    f"{sum(probe.num_tokens for probe in plan.probes):,} tokens in "
                    f"{len(plan.probes)} probes, {num_runs} runs on {self._device}"
                )
            )
        )

    def run(self) -> None:
        """All batches through all runs, in lockstep."""
        classifier = Classifier()
        weights = [each.input_ids.numel() for each in self._plan.batches]
        num_runs = sum(len(group.skeletons) for group in self._groups)
        total = sum(weights) * num_runs * len(self._layout.units)
        before = 0
        try:
            for batch, weight in zip(self._plan.batches, weights, strict=True):
                counter = _Steps(self._observe, weight=weight, before=before, total=total)
                self._run_batch(batch.to(self._device), classifier, counter)
                before += weight * num_runs * len(self._layout.units)
        except KeyboardInterrupt as error:
            self._incomplete_reason = "interrupted"
            raise ScanInterrupted(self.measurements()) from error

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
        plan_tokens = [probe.num_tokens for probe in self._plan.probes]
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
                probes_not_run=self._plan.not_run,
                longest_probe_tokens=max(plan_tokens, default=0),
                num_tokens=sum(plan_tokens),
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

    @property
    def _id(self) -> str:
        if isinstance(self._subject, Checkpoint):
            return self._subject.id
        return type(self._subject).__name__

    def _model_facts(self, default_attention: str) -> ModelFacts:
        config = getattr(self._model, "config", None)
        layout: Architecture = self._layout
        return ModelFacts(
            id=self._id,
            revision=self._subject.revision if isinstance(self._subject, Checkpoint) else None,
            architecture=type(self._model).__name__,
            model_type=getattr(config, "model_type", "") or type(self._model).__name__,
            decoder_layers=layout.decoder_layers,
            num_decoder_layers=layout.num_decoder_layers,
            num_parameters=sum(each.numel() for each in self._model.parameters()),
            declared_dtype=_declared_dtype(self._subject),
            tensor_dtypes=self._tensor_dtypes,
            default_attn_implementation=default_attention,
            max_context=_max_context(config),
        )


class _Steps:
    """Counts the steps of one batch for whoever watches the scan."""

    def __init__(self, observe: Observer, *, weight: int, before: int, total: int) -> None:
        self._observe = observe
        self._weight = weight
        self._done = before
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


def _read_checkpoint(
    subject: Checkpoint | nn.Module,
) -> tuple[CheckpointAudit, dict[str, int], int]:
    """Audit, elements by dtype and number of parameters, without running anything."""
    if isinstance(subject, Checkpoint):
        with StoredWeights(subject.weight_files) as weights:
            return audit_weights(weights), tensor_dtypes(weights), weights.num_elements
    sizes: dict[str, int] = {}
    for parameter in subject.parameters():
        name = str(parameter.dtype).removeprefix("torch.")
        sizes[name] = sizes.get(name, 0) + parameter.numel()
    return CheckpointAudit(), sizes, sum(sizes.values())


def _declared_dtype(subject: Checkpoint | nn.Module) -> str | None:
    if isinstance(subject, nn.Module):
        return str(main_dtype(subject)).removeprefix("torch.")
    declared = getattr(subject.config, "dtype", None)
    return None if declared is None else str(declared).removeprefix("torch.")


def _main_name(sizes: dict[str, int]) -> str | None:
    floating = {name: size for name, size in sizes.items() if "float" in name}
    return max(floating, key=floating.__getitem__, default=None)


def _vocab_size(model: nn.Module) -> int:
    """Rows of the input embedding.

    Raises:
        UnsupportedModelError: the model takes no token ids.
    """
    getter: Any = getattr(model, "get_input_embeddings", None)
    embedding: Any = None if getter is None else getter()
    embedding = embedding or next(
        (each for each in model.modules() if isinstance(each, nn.Embedding)), None
    )
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, torch.Tensor) or not isinstance(embedding, nn.Embedding):
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no token ids",
            hint="models of images or sound alone are not scanned yet",
        )
    return weight.shape[0]


def _max_context(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        found = getattr(text, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return None


def _decoder_start(model: nn.Module) -> int:
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            found = getattr(holder, name, None)
            if isinstance(found, int):
                return found
    return 0


def _summed(counts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for name, count in each.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))
