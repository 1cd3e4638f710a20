"""From a checkpoint that breaks to one that does not, and the proof: what ``precheck fix`` does.

The cheapest remedy that works is taken: nothing, another attention implementation, weights times
powers of two, some modules in float32.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from precheck.cure.float32 import in_float32
from precheck.cure.job import FixRequest, Job, scanned
from precheck.cure.objections import cheaper_remedy
from precheck.cure.proof import original
from precheck.cure.rescaled import rescaled
from precheck.errors import UnsupportedModelError, UsageError
from precheck.records.fix import Fix, Remedy
from precheck.records.precision import Dtype
from precheck.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

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
        request: what to fix it for, and how.
        report: a scan of this checkpoint; None makes one.
        observe: told what happens.

    Raises:
        UnsupportedModelError: quantised weights.
        UsageError: nothing can be written there, or the report is about other weights.
        PrecheckError: the checkpoint cannot be scanned.
    """
    from precheck.checkpoint.rewriting import check_room, check_target
    from precheck.checkpoint.source import open_checkpoint
    from precheck.measure.lockstep.witness import PeakWitness

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
    witness = PeakWitness()
    job = Job(
        checkpoint=checkpoint, output=output, request=request, peaks=witness.peaks, observe=observe
    )
    dtypes = tuple(Dtype) if report is None else (Dtype.FLOAT32,)
    measured = scanned(job, checkpoint, dtypes=dtypes, witness=witness)
    if report is not None and report.checkpoint.digest not in {None, measured.checkpoint.digest}:
        raise UsageError(
            f"the report is about other weights than {model!r}",
            hint="leave --report out, or scan this checkpoint",
        )
    report = report or measured
    attn = report.model.default_attn_implementation or "eager"
    job = replace(job, attn_implementation=attn)
    plan = Fix(
        precheck_version=__version__,
        model=report.model.id,
        revision=report.model.revision,
        dtype=request.dtype,
        attn_implementation=attn,
        remedy=Remedy.NONE,
        sentence="",
        headroom_bits=request.headroom_bits,
    )
    cheap = cheaper_remedy(report, request.dtype, attn)
    if cheap is not None:
        return replace(plan, remedy=cheap.remedy, sentence=cheap.sentence)
    known = cache(lambda: original(job))  # both remedies are proved against it
    done = rescaled(plan, job, known=known)
    return done if done.holds else in_float32(done, job, known=known)
