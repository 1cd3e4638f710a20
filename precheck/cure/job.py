"""What every step of a fix shares: the request, the job, and the scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.errors import PrecheckError, UsageError
from precheck.pipeline import judged
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.checkpoint.source import Checkpoint
    from precheck.cure.held_out import ProofProbes
    from precheck.cure.media.gather import Media
    from precheck.measure.lockstep.witness import Witness
    from precheck.measure.watch.peaks import Peaks
    from precheck.records.progress import Observer
    from precheck.records.report import Report

NUM_GENERATED = 8
"""Tokens generated after a prompt, by the original and by the fixed checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixRequest:
    """The options of a fix."""

    dtype: Dtype = Dtype.FLOAT16
    headroom_bits: float = 2.0
    """To keep in every result, where that is possible."""
    may_break: bool = False
    """Rescale even where that is not exact."""
    is_dry_run: bool = False
    overwrite: bool = False
    remove_leftovers: bool = False
    """Left by processes that were killed while they wrote next to the output."""
    device: str = "auto"
    max_memory: int | None = None
    """Bytes that a scan may use."""
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The checkpoint to fix, and where to."""

    checkpoint: Checkpoint
    output: Path | None
    """None only for a dry run."""
    request: FixRequest
    peaks: Peaks
    """The largest magnitudes of each operation's result in float32."""
    observe: Observer
    media: Media
    """What it takes besides text."""
    attn_implementation: str = ""
    """The one that the checkpoint is loaded with by default; empty: not known yet."""

    @property
    def target(self) -> Path:
        """Where to write.

        Raises:
            UsageError: no place was given.
        """
        if self.output is None:
            raise UsageError(
                "no output folder (expected one)", hint="or see what it would do: is_dry_run"
            )
        return self.output


def scanned(
    job: Job,
    checkpoint: Checkpoint,
    *,
    dtypes: Sequence[Dtype],
    witness: Witness,
    probes: ProofProbes | None = None,
) -> Report:
    """The report on the original or on the fixed checkpoint.

    Args:
        job: what was requested.
        checkpoint: the original, or the fixed one.
        dtypes: those to run it in.
        witness: is shown what the report does not keep.
        probes: those of the proof; None takes the built-in ones, and generates nothing after them.

    Raises:
        PrecheckError: the scan could not be completed.
    """
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import CheckpointSubject

    attn = job.attn_implementation
    request = Request(
        dtypes=tuple(dtypes),
        attn_implementations=(attn,) if attn else None,
        prompts=None if probes is None else probes.prompts,
        batches=job.media.choosing if probes is None else probes.batches,
        device=job.request.device,
        max_memory=job.request.max_memory,
        num_generated=0 if probes is None else NUM_GENERATED,
        continues_own=False,
        witness=witness,
    )
    report = judged(CheckpointSubject(checkpoint), request, observe=job.observe)
    if not report.complete:
        raise PrecheckError(
            f"the scan is incomplete: {report.incomplete_reason}",
            hint="see what stops it: precheck scan MODEL",
        )
    return report
