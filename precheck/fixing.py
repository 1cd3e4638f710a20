"""From a checkpoint that breaks to one that does not, and the proof: what ``precheck fix`` does."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

from precheck import __version__
from precheck.errors import UnsupportedModelError
from precheck.judge import judge
from precheck.judge.fixing import (
    cheaper_remedy,
    in_the_way,
    mechanism_rooms,
    objections,
    rooms,
    too_large,
)
from precheck.judge.rescaling import choose
from precheck.records.fix import Exactness, Factor, Fix, Proof, ProofRun, Remedy, SettingChange
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.records.scaling import Kind
from precheck.records.traces import GREEDY
from precheck.render.fix_report import render_fix_card

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.checkpoint.rewriting import Rounded
    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights
    from precheck.judge.rescaling import Choice
    from precheck.probe.blueprint import Blueprint
    from precheck.probe.witness import Compared, LogitsWitness, Witness
    from precheck.records.progress import Observer
    from precheck.records.prompts import Prompt
    from precheck.records.report import Report, Run

FIX_FILE, MODEL_CARD = "precheck-fix.json", "README.md"
NUM_GENERATED = 8
"""Tokens that are written behind a prompt, before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixRequest:
    """What was asked for."""

    dtype: Dtype = Dtype.FLOAT16
    headroom_bits: float = 2.0
    may_break: bool = False
    is_dry_run: bool = False
    overwrite: bool = False
    device: str = "auto"
    max_memory: int | None = None


def fix(
    model: str,
    output: Path,
    *,
    request: FixRequest,
    report: Report | None,
    revision: str | None,
    trust_remote_code: bool,
    observe: Observer,
) -> Fix:
    """Writes a checkpoint that runs in a dtype in which this one breaks, unless there is no need.

    Args:
        model: a local folder, a Hub id or ``demo:NAME``.
        output: folder for the fixed checkpoint.
        request: what to fix it for, and how.
        report: a scan of this checkpoint; None makes one.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run the code that comes with the checkpoint.
        observe: told what happens.

    Raises:
        UnsupportedModelError: quantised weights, or an architecture that cannot be traced.
        UsageError: nothing can be written there.
        PrecheckError: the checkpoint cannot be scanned.
    """
    from precheck.checkpoint.rewriting import check_room, check_target
    from precheck.checkpoint.source import open_checkpoint
    from precheck.probe.witness import PeakWitness

    check_target(output, overwrite=request.overwrite)
    checkpoint = open_checkpoint(
        model, revision=revision, trust_remote_code=trust_remote_code, observe=observe
    )
    if checkpoint.quantization is not None:
        raise UnsupportedModelError(
            f"quantised weights: {checkpoint.quantization.method} (expected plain ones: packed "
            "integers cannot be multiplied by a power of two)",
            hint="fix the checkpoint it was made from, then quantise that",
        )
    check_room(output, checkpoint)
    witness = PeakWitness()
    job = _Job(
        checkpoint=checkpoint, output=output, request=request, peaks=witness.peaks, observe=observe
    )
    dtypes = tuple(Dtype) if report is None else (Dtype.FLOAT32,)
    measured = _scanned(checkpoint, dtypes, None, witness, job)
    report = report or measured
    job = replace(job, attn_implementation=report.model.default_attn_implementation or "eager")
    plan = Fix(
        precheck_version=__version__,
        model=report.model.id,
        revision=report.model.revision,
        dtype=request.dtype,
        attn_implementation=job.attn_implementation,
        remedy=Remedy.NONE,
        sentence="",
        headroom_bits=request.headroom_bits,
    )
    cheap = cheaper_remedy(report, request.dtype, job.attn_implementation)
    if cheap is not None:
        return replace(plan, remedy=cheap.remedy, sentence=cheap.sentence)
    with checkpoint.open_weights() as stored:
        return _rescaled(plan, stored, job)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What every step works with."""

    checkpoint: Checkpoint
    output: Path
    request: FixRequest
    peaks: dict[tuple[str, str, int], float]
    observe: Observer
    attn_implementation: str = ""
    """What the checkpoint is loaded with unless something else is asked for; empty: not known."""


def _rescaled(plan: Fix, stored: Weights, job: _Job) -> Fix:
    """The checkpoint multiplied by powers of two, or why that cannot be."""
    from precheck.probe.blueprint import read_blueprint

    request = job.request
    job.observe(Announcement(text="tracing what is scaled by what"))
    blueprint = read_blueprint(
        job.checkpoint,
        stored,
        dtype=request.dtype,
        attn_implementation=job.attn_implementation,
    )
    choice = choose(
        blueprint.scales,
        peaks=job.peaks,
        limit=request.dtype.limits.max,
        headroom_bits=request.headroom_bits,
        may_break=request.may_break,
    )
    plan = _planned(plan, choice, job.checkpoint)
    if choice.misfits or not choice.exponents:
        return _refused(plan, choice, blueprint, job)
    if request.is_dry_run:
        return replace(plan, remedy=Remedy.RESCALING, sentence="nothing was written (--dry-run)")
    return _written(plan, choice, blueprint, stored, job)


def _planned(plan: Fix, choice: Choice, checkpoint: Checkpoint) -> Fix:
    settings = tuple(_settings(choice, checkpoint).values())
    factors = tuple(
        Factor(
            parameter=unknown.name,
            power=power,
            dim=None if unknown.stop is None else unknown.dim,
            start=None if unknown.stop is None else unknown.start,
            stop=unknown.stop,
            shift=unknown.shift if unknown.kind is Kind.SHIFTED_WEIGHT else None,
        )
        for unknown, power in choice.exponents.items()
        if unknown.kind is not Kind.SETTING
    )
    return replace(plan, factors=factors, settings=settings, rooms=rooms(choice))


def _settings(choice: Choice, checkpoint: Checkpoint) -> dict[tuple[str, ...], SettingChange]:
    """Numbers of the config that change, by their path."""
    from precheck.probe.config_numbers import config_numbers

    powers = {
        each.name: each.step * power
        for each, power in choice.exponents.items()
        if each.kind is Kind.SETTING
    }
    return {
        each.path: SettingChange(
            name=each.name, before=each.value, after=each.value * 2.0 ** powers[each.name]
        )
        for each in config_numbers(checkpoint.config)
        if each.name in powers
    }


def _refused(plan: Fix, choice: Choice, blueprint: Blueprint, job: _Job) -> Fix:
    """No exact rescaling brings everything into range: says what is in the way."""
    loosened = choose(
        blueprint.scales,
        peaks=job.peaks,
        limit=job.request.dtype.limits.max,
        headroom_bits=0.0,
        may_break=True,
    )
    return replace(
        plan,
        remedy=Remedy.NONE,
        sentence="no exact rescaling brings it into range",
        reasons=(*too_large(choice), *in_the_way(loosened)),
        factors=(),
        settings=(),
    )


def _written(plan: Fix, choice: Choice, blueprint: Blueprint, stored: Weights, job: _Job) -> Fix:
    """Writes the checkpoint, proves it, and keeps it if the proof holds."""
    from precheck.checkpoint.rewriting import unfinished, write_checkpoint

    changes = blueprint.stored_changes(choice.exponents, stored)
    settings = {path: each.after for path, each in _settings(choice, job.checkpoint).items()}
    with unfinished(job.output, overwrite=job.request.overwrite) as made:
        job.observe(Announcement(text=f"writing {counted(len(changes), 'changed tensor')}"))
        rounded = write_checkpoint(
            made.folder,
            job.checkpoint,
            stored,
            changes=changes,
            settings=settings,
            dtype=job.request.dtype,
        )
        proof = _proof(made.folder, choice, blueprint, rounded, job)
        done = replace(plan, remedy=Remedy.RESCALING, proof=proof)
        if not proof.holds:
            return replace(
                done,
                sentence="the fixed checkpoint was not proved, and is not kept",
                reasons=proof.objections,
            )
        done = replace(done, sentence=f"runs in {job.request.dtype}: {job.output}")
        _describe(made.folder, done)
        made.take_place()
    return done


def _describe(folder: Path, done: Fix) -> None:
    """The record of the fix, and a section of the model card."""
    text = json.dumps(done.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / FIX_FILE).write_text(f"{text}\n", encoding="utf-8")
    card = folder / MODEL_CARD
    before = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    card.write_text(f"{before.rstrip()}\n\n{render_fix_card(done)}".lstrip(), encoding="utf-8")


def _proof(
    folder: Path, choice: Choice, blueprint: Blueprint, rounded: Rounded, job: _Job
) -> Proof:
    """Both checkpoints on probes that were not used so far."""
    from precheck.checkpoint.source import open_checkpoint
    from precheck.probe.held_out import held_out_prompts
    from precheck.probe.witness import LogitsWitness

    request = job.request
    prompts = held_out_prompts(job.checkpoint, blueprint.model)
    job.observe(Announcement(text=f"proof, on {counted(len(prompts), 'new probe')}: the original"))
    kept = LogitsWitness(keeps=True)
    original = _scanned(job.checkpoint, tuple(Dtype), prompts, kept, job)
    job.observe(Announcement(text="proof: the fixed checkpoint"))
    against = LogitsWitness(kept=kept.kept)
    fixed_checkpoint = open_checkpoint(
        str(folder), trust_remote_code=job.checkpoint.trust_remote_code, observe=job.observe
    )
    dtypes = tuple(dict.fromkeys((request.dtype, Dtype.FLOAT32)))
    fixed = _scanned(fixed_checkpoint, dtypes, prompts, against, job)
    runs = (*_runs("original", original, kept), *_runs("fixed", fixed, against))
    found = objections(runs, dtype=request.dtype)
    return Proof(
        holds=not found,
        exactness=_exactness(runs, choice),
        objections=found,
        num_tokens=sum(each.num_tokens for each in fixed.probes),
        runs=runs,
        headroom=mechanism_rooms(original, fixed, dtype=request.dtype),
        num_changed=rounded.num_elements,
        num_became_zero=rounded.num_zero,
        num_became_subnormal=rounded.num_subnormal,
    )


def _exactness(runs: Sequence[ProofRun], choice: Choice) -> Exactness:
    is_same = any(
        each.checkpoint == "fixed" and each.dtype is Dtype.FLOAT32 and each.is_identical
        for each in runs
    )
    if is_same:
        return Exactness.EXACT
    if choice.broken:
        return Exactness.APPROXIMATE
    return Exactness.EPSILONS if choice.loose else Exactness.ROUNDED


def _scanned(
    checkpoint: Checkpoint,
    dtypes: tuple[Dtype, ...],
    prompts: Sequence[Prompt] | None,
    witness: Witness,
    job: _Job,
) -> Report:
    from precheck.probe.measure import measure
    from precheck.probe.request import Request

    measurements = measure(
        checkpoint,
        Request(
            dtypes=dtypes,
            attn_implementations=(job.attn_implementation,) if job.attn_implementation else None,
            required=(),
            prompts=prompts,
            builtin_probes=False,
            quick=False,
            device=job.request.device,
            max_memory=job.request.max_memory,
            is_resident=False,
            num_generated=0 if prompts is None else NUM_GENERATED,
            continues_own=False,
            witness=witness,
        ),
        observe=job.observe,
    )
    return judge(measurements, version=__version__)


def _runs(which: str, report: Report, witness: LogitsWitness) -> tuple[ProofRun, ...]:
    return tuple(
        _run(which, each, witness.found.get((each.dtype, each.attn_implementation)))
        for each in report.runs
    )


def _run(which: str, run: Run, compared: Compared | None) -> ProofRun:
    trace = None if compared is None else compared.totals.trace
    greedy = next((each.text for each in run.generations if each.way == GREEDY), None)
    difference = None if compared is None else compared.max_difference
    return ProofRun(
        checkpoint=which,
        dtype=run.dtype,
        attn_implementation=run.attn_implementation,
        verdict=run.verdict,
        reason=run.reason,
        kl_divergence_mean=None if trace is None else trace.kl_divergence_mean,
        kl_divergence_max=None if trace is None else trace.kl_divergence_max,
        top1_agreement=None if trace is None else trace.top1_agreement,
        max_logit_difference=difference
        if difference is not None and isfinite(difference)
        else None,
        is_identical=compared is not None and compared.is_identical,
        greedy=greedy,
    )
