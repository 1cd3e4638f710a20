"""The checkpoint times powers of two, or why that cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.cure.objections import in_the_way, rooms, too_large
from precheck.cure.proof import prove
from precheck.cure.scales.forms import Kind
from precheck.cure.scales.solve import choose
from precheck.errors import UntraceableError
from precheck.records.fix import Factor, Remedy, SettingChange
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.render.screens.fix import render_fix_card

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precheck.checkpoint.rewriting import Unfinished
    from precheck.checkpoint.weights import Weights
    from precheck.cure.job import Job
    from precheck.cure.proof import Original
    from precheck.cure.scales.solve import Choice
    from precheck.cure.scales.traced_checkpoint import TracedCheckpoint
    from precheck.records.fix import Fix, Proof

FIX_FILE, MODEL_CARD = "precheck-fix.json", "README.md"


def rescaled(plan: Fix, job: Job, *, known: Callable[[], Original]) -> Fix:
    """Chooses factors, writes the checkpoint, proves it, and keeps it if the proof holds.

    Args:
        plan: what is known of the fix so far.
        job: the checkpoint.
        known: what the original does on the probes of the proof.

    Raises:
        UsageError: the checkpoint cannot be written.
    """
    from precheck.checkpoint.rewriting import unfinished, write_checkpoint

    with job.checkpoint.open_weights() as stored:
        try:
            traced, choice = _chosen(plan, stored, job)
            changes = traced.stored_changes(choice.exponents, stored)
        except UntraceableError as error:
            return replace(plan, sentence="it cannot be rescaled", reasons=(error.message,))
        if choice.misfits or not choice.exponents:
            return _refused(plan, choice, traced, job)
        settings = _settings(choice, job)
        plan = _planned(plan, choice, tuple(settings.values()))
        if job.request.is_dry_run:
            return replace(plan, sentence="nothing was written (--dry-run)")
        with unfinished(job.output, overwrite=job.request.overwrite) as made:
            job.observe(Announcement(text=f"writing {counted(len(changes), 'changed tensor')}"))
            rounded = write_checkpoint(
                made.folder,
                job.checkpoint,
                stored,
                changes=changes,
                settings={path: each.after for path, each in settings.items()},
                dtype=job.request.dtype,
            )
            proof = prove(made.folder, known(), choice, rounded, job)
            return _finished(plan, made, job, proof=proof)


def _chosen(plan: Fix, stored: Weights, job: Job) -> tuple[TracedCheckpoint, Choice]:
    """What ties the factors together, and the factors; whole numbers change only if they must."""
    from precheck.cure.scales.traced_checkpoint import trace_checkpoint

    job.observe(Announcement(text="tracing what is scaled by what"))
    for with_whole_numbers in (False, True):
        traced = trace_checkpoint(
            job.checkpoint,
            stored,
            dtype=plan.dtype,
            attn_implementation=job.attn_implementation,
            with_whole_numbers=with_whole_numbers,
        )
        choice = choose(
            traced.scales,
            peaks=job.peaks,
            limit=plan.dtype.limits.max,
            headroom_bits=plan.headroom_bits,
            may_break=job.request.may_break,
        )
        if not choice.misfits:
            break
    return traced, choice


def _planned(plan: Fix, choice: Choice, settings: tuple[SettingChange, ...]) -> Fix:
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
    return replace(
        plan,
        remedy=Remedy.RESCALING,
        factors=factors,
        settings=settings,
        rooms=rooms(choice, headroom_bits=plan.headroom_bits),
    )


def _settings(choice: Choice, job: Job) -> dict[tuple[str, ...], SettingChange]:
    """Numbers of the config that change, by their path."""
    from precheck.cure.scales.settings import config_numbers

    powers = {
        each.name: each.step * power
        for each, power in choice.exponents.items()
        if each.kind is Kind.SETTING
    }
    return {
        each.path: SettingChange(
            name=each.name, before=each.value, after=each.times(powers[each.name])
        )
        for each in config_numbers(job.checkpoint.config)
        if each.name in powers
    }


def _refused(plan: Fix, choice: Choice, traced: TracedCheckpoint, job: Job) -> Fix:
    """No exact rescaling brings everything into range: says what is in the way."""
    loosened = choose(
        traced.scales,
        peaks=job.peaks,
        limit=job.request.dtype.limits.max,
        headroom_bits=0.0,
        may_break=True,
    )
    return replace(
        plan,
        sentence="no exact rescaling brings it into range",
        reasons=(*too_large(choice), *in_the_way(loosened)),
        rooms=rooms(choice, headroom_bits=0.0),
    )


def _finished(plan: Fix, made: Unfinished, job: Job, *, proof: Proof) -> Fix:
    """Puts the checkpoint into its place if it is proved."""
    if not proof.holds:
        return replace(
            plan,
            remedy=Remedy.NONE,
            proof=proof,
            sentence="the rescaled checkpoint was not proved, and is not kept",
            reasons=proof.objections,
        )
    done = replace(plan, proof=proof, sentence=f"runs in {plan.dtype}: {job.output}")
    _describe(made.folder, done)
    made.take_place()
    return done


def _describe(folder: Path, done: Fix) -> None:
    """The record of the fix, and a section of the model card."""
    from precheck.checkpoint.rewriting import write_json

    write_json(folder / FIX_FILE, done.to_dict())
    card = folder / MODEL_CARD
    before = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    card.write_text(f"{before.rstrip()}\n\n{render_fix_card(done)}".lstrip(), encoding="utf-8")
