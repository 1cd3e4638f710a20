"""``precheck fix``: from a checkpoint that breaks in a dtype to one that runs in it, with a proof.

The cheapest remedy that works is taken. In this order: none is needed; another attention
implementation; weights times powers of two (``rescaled.py``); some modules in float32
(``float32.py``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from precheck.checkpoint.rewriting import check_room, check_target
from precheck.checkpoint.source import open_checkpoint
from precheck.cure.decision import cheaper_remedy
from precheck.cure.float32 import find_recipe
from precheck.cure.job import FixRequest, Job, scanned
from precheck.cure.proof import run_original
from precheck.cure.rescaled import rescale
from precheck.errors import UnsupportedModelError, UsageError
from precheck.measure.lockstep.witness import PeakWitness
from precheck.records.fix import Fix, Remedy
from precheck.records.precision import Dtype
from precheck.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.checkpoint.source import Checkpoint
    from precheck.records.progress import Observer
    from precheck.records.report import Report

__all__ = ["FixRequest", "fix"]


def fix(
    model: str,
    output: Path,
    *,
    request: FixRequest,
    report: Report | None = None,
    observe: Observer,
) -> Fix:
    """Writes a checkpoint that runs in a dtype in which this one breaks, unless there is no need.

    Args:
        model: a local folder, a Hub id or ``demo:NAME``.
        output: folder for the fixed checkpoint, or for the recipe.
        request: the dtype to fix it for, and the options.
        report: a scan of this checkpoint; None makes one.
        observe: receives progress.

    Raises:
        UnsupportedModelError: quantised weights.
        UsageError: nothing can be written there, or the report is about other weights.
        PrecheckError: the checkpoint cannot be scanned.
    """
    checkpoint = _open(model, output, request, observe)
    witness = PeakWitness()
    job = Job(
        checkpoint=checkpoint, output=output, request=request, peaks=witness.peaks, observe=observe
    )
    # with a report float32 alone is scanned, for the peaks, which reports do not hold
    dtypes = tuple(Dtype) if report is None else (Dtype.FLOAT32,)
    scan = scanned(job, checkpoint, dtypes=dtypes, witness=witness)
    if report is not None and report.checkpoint.digest not in {None, scan.checkpoint.digest}:
        raise UsageError(
            f"the report is about other weights than {model!r}",
            hint="leave --report out, or scan this checkpoint",
        )
    report = report or scan
    attn = report.model.default_attn_implementation or "eager"
    return _apply_cheapest(report, replace(job, attn_implementation=attn))


def _open(model: str, output: Path, request: FixRequest, observe: Observer) -> Checkpoint:
    """The checkpoint, if it can be fixed and the result be written."""
    check_target(output, overwrite=request.overwrite)
    checkpoint = open_checkpoint(
        model,
        revision=request.revision,
        trust_remote_code=request.trust_remote_code,
        observe=observe,
    )
    if checkpoint.quantization is not None:
        raise UnsupportedModelError(
            f"quantised weights: {checkpoint.quantization.method} (expected plain ones: packed "
            "integers cannot be multiplied by a power of two)",
            hint="fix the checkpoint it was made from, then quantise that",
        )
    check_room(output, checkpoint)
    return checkpoint


def _apply_cheapest(report: Report, job: Job) -> Fix:
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
        return replace(plan, remedy=decision.remedy, sentence=decision.sentence)
    original = cache(lambda: run_original(job))  # both remedies are proved against it
    fixed = rescale(plan, job, original=original)
    return fixed if fixed.holds else find_recipe(fixed, job, original=original)
