"""The checkpoint with its weights multiplied by powers of two, or why that is impossible.

Trace the model, choose the powers, write the checkpoint next to the output folder, prove it, and
move it there. The idea and its limits are in ``precheck.cure.scales``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.output.unfinished import unfinished
from precheck.checkpoint.rewriting import write_checkpoint, write_json
from precheck.cure.notes import embedding_notes
from precheck.cure.obstacles import blocking_equations, overflow_sentences, tight_results
from precheck.cure.proof import prove
from precheck.cure.scales.blocks import parameter_changes
from precheck.cure.scales.config_numbers import config_numbers
from precheck.cure.scales.forms import Kind
from precheck.cure.scales.solve import choose
from precheck.cure.scales.traced_checkpoint import trace_checkpoint
from precheck.cure.scales.weight_ranges import weight_ranges
from precheck.errors import UntraceableError
from precheck.records.outcomes.fix import Factor, Remedy, SettingChange
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.render.screens.fix import render_fix_card

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from precheck.checkpoint.output.unfinished import Unfinished
    from precheck.checkpoint.rewriting import Rounded
    from precheck.checkpoint.weights import Weights
    from precheck.cure.job import Job
    from precheck.cure.proof import OriginalRuns
    from precheck.cure.scales.forms import Scales, Unknown
    from precheck.cure.scales.solve import Choice
    from precheck.cure.scales.traced_checkpoint import TracedCheckpoint
    from precheck.cure.scales.weight_ranges import WeightRange
    from precheck.records.outcomes.fix import Fix, Proof, TensorChange

FIX_FILE, MODEL_CARD = "precheck-fix.json", "README.md"

ConfigPath = tuple[str, ...]
"""``("text_config", "rms_norm_eps")``."""


def rescale(plan: Fix, job: Job, *, original: Callable[[], OriginalRuns]) -> Fix:
    """Chooses factors, writes the checkpoint, proves it, and keeps it if the proof holds.

    Args:
        plan: the record of the fix so far.
        job: the checkpoint.
        original: runs the original on the probes of the proof.

    Raises:
        UsageError: the checkpoint cannot be written.
    """
    with job.checkpoint.open_weights() as stored:
        try:
            traced = _traced(plan, stored, job)
        except UntraceableError as error:
            return replace(plan, sentence="it cannot be rescaled", reasons=(error.message,))
        job.observe(Announcement(text="measuring the weights"))
        weights = weight_ranges(traced, stored)
        fixed = plan
        for keeps_settings in (False, True):
            choice = _choice(traced, job, weights, keeps_settings=keeps_settings)
            if choice.overflowing or not choice.exponents:
                # the second one is tried where the first could not be proved
                return fixed if keeps_settings else _with_obstacles(plan, choice, traced, job)
            fixed = _written_and_proved(plan, traced, choice, stored, job, original=original)
            if fixed.holds or not fixed.settings:
                break
        return fixed


def _written_and_proved(
    plan: Fix,
    traced: TracedCheckpoint,
    choice: Choice,
    stored: Weights,
    job: Job,
    *,
    original: Callable[[], OriginalRuns],
) -> Fix:
    settings = _setting_changes(choice, job)
    plan = _with_factors(plan, choice, traced.scales, tuple(settings.values()))
    notes = (*plan.notes, *embedding_notes(traced.model, plan.factors))
    if job.request.is_dry_run:
        sentence = f"would run in {plan.dtype} once rescaled (not proved yet)"
        return replace(plan, sentence=sentence, notes=notes)
    changes = traced.stored_changes(choice.exponents, stored)
    with unfinished(job.target, overwrite=job.request.overwrite) as draft:
        rounded = _write(draft.folder, stored, changes, settings, job)
        proof = prove(draft.folder, original(), choice, rounded, job)
        return _keep_if_proved(replace(plan, proof=proof), draft, proof=proof, notes=notes)


def _traced(plan: Fix, stored: Weights, job: Job) -> TracedCheckpoint:
    """The scales; integers of the config are among them only where they have to change."""
    job.observe(Announcement(text="tracing how scales propagate"))
    for with_whole_numbers in (False, True):
        traced = trace_checkpoint(
            job.checkpoint,
            stored,
            dtype=plan.dtype,
            attn_implementation=job.attn_implementation,
            with_whole_numbers=with_whole_numbers,
            media=job.media.tracing,
        )
        if not _choice(traced, job, {}).overflowing:
            break
    return traced


def _choice(
    traced: TracedCheckpoint,
    job: Job,
    weights: Mapping[Unknown, WeightRange],
    *,
    keeps_settings: bool = False,
) -> Choice:
    return choose(
        traced.scales,
        peaks=job.peaks,
        limits=job.request.dtype.limits,
        headroom_bits=job.request.headroom_bits,
        weights=weights,
        keeps_settings=keeps_settings,
        may_break=job.request.may_break,
    )


def _with_obstacles(plan: Fix, choice: Choice, traced: TracedCheckpoint, job: Job) -> Fix:
    """The record where no exact rescaling exists: it says which equations are in the way.

    These are the ones that break if equations may be broken and no headroom is required.
    """
    relaxed = choose(
        traced.scales,
        peaks=job.peaks,
        limits=job.request.dtype.limits,
        headroom_bits=0.0,
        may_break=True,
    )
    return replace(
        plan,
        sentence="no exact rescaling brings it into range",
        reasons=(*overflow_sentences(choice), *blocking_equations(relaxed)),
        rooms=tight_results(choice, headroom_bits=0.0),
    )


def _with_factors(
    plan: Fix, choice: Choice, scales: Scales, settings: tuple[SettingChange, ...]
) -> Fix:
    changes = parameter_changes(choice.exponents, scales.partitions)
    factors = tuple(
        Factor(parameter=name, power=change.power, block=change.block, shift=change.shift)
        for name, several in changes.items()
        for change in several
    )
    return replace(
        plan,
        remedy=Remedy.RESCALING,
        factors=factors,
        settings=settings,
        rooms=tight_results(choice, headroom_bits=plan.headroom_bits),
    )


def _setting_changes(choice: Choice, job: Job) -> dict[ConfigPath, SettingChange]:
    """Numbers of the config that change, by their path."""
    powers = {
        unknown.name: unknown.step * power
        for unknown, power in choice.exponents.items()
        if unknown.kind is Kind.SETTING
    }
    return {
        number.path: SettingChange(
            name=number.name, before=number.value, after=number.times(powers[number.name])
        )
        for number in config_numbers(job.checkpoint.config)
        if number.name in powers
    }


def _write(
    folder: Path,
    stored: Weights,
    changes: Mapping[str, tuple[TensorChange, ...]],
    settings: Mapping[ConfigPath, SettingChange],
    job: Job,
) -> Rounded:
    job.observe(Announcement(text=f"writing {counted(len(changes), 'changed tensor')}"))
    return write_checkpoint(
        folder,
        job.checkpoint,
        stored,
        changes=changes,
        settings={path: change.after for path, change in settings.items()},
        dtype=job.request.dtype,
    )


def _keep_if_proved(plan: Fix, draft: Unfinished, *, proof: Proof, notes: tuple[str, ...]) -> Fix:
    """Moves the checkpoint to its place if the proof holds."""
    if not proof.holds:
        return replace(
            plan,
            remedy=Remedy.NONE,
            sentence="the rescaled checkpoint could not be proved and was not kept",
        )
    fixed = replace(plan, sentence=f"rescaled, and runs in {plan.dtype}", notes=notes)
    _describe(draft.folder, fixed)
    draft.take_place()
    return fixed


def _describe(folder: Path, fixed: Fix) -> None:
    """Writes the record of the fix, and a section of the model card."""
    write_json(folder / FIX_FILE, fixed.to_dict())
    card = folder / MODEL_CARD
    before = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    card.write_text(f"{before.rstrip()}\n\n{render_fix_card(fixed)}".lstrip(), encoding="utf-8")
