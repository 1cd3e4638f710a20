"""``precheck fix``: from a checkpoint that breaks in a dtype to one that runs in it, with a proof.

The cheapest remedy that works is taken. In this order: none is needed; another attention
implementation; weights times powers of two (``rescaled.py``); some modules in float32
(``float32.py``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from precheck.checkpoint.output.carried import find_carried
from precheck.checkpoint.output.unfinished import check_target
from precheck.checkpoint.output.workspace import find_leftovers, remove_leftover
from precheck.checkpoint.rewriting import check_apart, check_room
from precheck.checkpoint.source import open_checkpoint
from precheck.cure.decision import cheaper_remedy
from precheck.cure.float32 import find_recipe
from precheck.cure.job import FixRequest, Job, scanned
from precheck.cure.media.gather import find_media
from precheck.cure.notes import media_notes, refused_media, verdict_notes
from precheck.cure.proof import run_original
from precheck.cure.rescaled import rescale
from precheck.cure.scales.traced_checkpoint import wanted_of
from precheck.errors import UnsupportedModelError, UsageError
from precheck.measure.lockstep.witness import PeakWitness
from precheck.records.outcomes.fix import Fix, Remedy
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import num_bytes
from precheck.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.checkpoint.source import Checkpoint
    from precheck.records.progress import Observer
    from precheck.records.report import Report

__all__ = ["FixRequest", "fix"]


def fix(
    model: str,
    output: Path | None,
    *,
    request: FixRequest,
    report: Report | None = None,
    observe: Observer,
) -> Fix:
    """Writes a checkpoint that runs in a dtype in which this one breaks, unless that is not needed.

    Args:
        model: a local folder, a Hub id or ``demo:NAME``.
        output: folder for the fixed checkpoint, or for the recipe; a dry run needs none.
        request: the dtype to fix it for, and the options.
        report: a scan of this checkpoint; None makes one.
        observe: receives progress.

    Raises:
        UnsupportedModelError: quantised weights.
        UsageError: nothing can be written there, or the report is about other weights.
        PrecheckError: the checkpoint cannot be scanned.
    """
    checkpoint = _open(model, output, request, observe)
    media = find_media(checkpoint)
    with checkpoint.open_weights() as stored:
        wanted = wanted_of(checkpoint, stored, dtype=request.dtype, media=media.tracing)
    witness = PeakWitness(wanted)
    job = Job(
        checkpoint=checkpoint,
        output=output,
        request=request,
        peaks=witness.peaks,
        observe=observe,
        media=media,
    )
    # with a report only float32 is scanned, for the peaks, which reports do not contain
    dtypes = tuple(Dtype) if report is None else (Dtype.FLOAT32,)
    scan = scanned(job, checkpoint, dtypes=dtypes, witness=witness)
    if report is not None and report.checkpoint.has_weights_of(scan.checkpoint) is False:
        raise UsageError(
            f"the report is about other weights than {model!r}",
            hint="leave --report out, or scan this checkpoint",
        )
    is_scan, report = report is None, report or scan
    # the first run has the attention of a plain load, where that runs here
    attn = next((run.attn_implementation for run in report.runs if run.failure is None), "eager")
    return _apply_cheapest(report, replace(job, attn_implementation=attn), is_scan=is_scan)


def _open(model: str, output: Path | None, request: FixRequest, observe: Observer) -> Checkpoint:
    """The checkpoint, if it can be fixed and the result be written."""
    if output is not None:
        check_target(output, overwrite=request.overwrite)
        _announce_leftovers(output, request, observe)
    checkpoint = open_checkpoint(
        model,
        revision=request.revision,
        trust_remote_code=request.trust_remote_code,
        observe=observe,
    )
    if checkpoint.quantization is not None:
        raise UnsupportedModelError(
            f"quantised weights: {checkpoint.quantization.method} (expected unquantised "
            "weights: packed integers cannot be multiplied by a power of two)",
            hint="fix the checkpoint it was made from, then quantise that",
        )
    if output is not None:
        check_apart(output, checkpoint)
        carried = find_carried(checkpoint.folder)
        check_room(output, checkpoint, carried)
        if carried.left_out:
            left_out = ", ".join(f"{name!r} ({reason})" for name, reason in carried.left_out)
            observe(Announcement(text=f"not copied: {left_out}", is_problem=True))
    return checkpoint


def _announce_leftovers(output: Path, request: FixRequest, observe: Observer) -> None:
    """Removes what killed processes left next to the output, or says how to."""
    removes = request.remove_leftovers and not request.is_dry_run
    for leftover in find_leftovers(output.resolve().parent):
        what = f"{num_bytes(leftover.size_bytes)} left by a killed process: {leftover.folder}"
        if removes:
            remove_leftover(leftover)
        observe(
            Announcement(
                text=f"removed {what}" if removes else f"{what} (--remove-leftovers deletes it)"
            )
        )


def _apply_cheapest(report: Report, job: Job, *, is_scan: bool) -> Fix:
    """Tries the remedies, the cheapest first."""
    plan = Fix(
        precheck_version=__version__,
        model=report.model.id,
        revision=report.model.revision,
        dtype=job.request.dtype,
        attn_implementation=job.attn_implementation,
        remedy=Remedy.NONE,
        sentence="",
        headroom_bits=job.request.headroom_bits,
    )
    decision = cheaper_remedy(report, job.request.dtype, job.attn_implementation)
    if decision is not None:
        plan = replace(plan, remedy=decision.remedy, sentence=decision.sentence)
        return replace(plan, notes=verdict_notes(job.media, is_of_report=not is_scan))
    refusal = refused_media(job.media)
    if refusal is not None:
        return replace(plan, sentence=refusal.sentence, reasons=refusal.reasons)
    original = cache(lambda: run_original(job))  # both remedies are proved against it
    plan = replace(plan, notes=media_notes(job.media))
    fixed = rescale(plan, job, original=original)
    return fixed if fixed.holds else find_recipe(fixed, job, original=original)
