"""What every step of a fix works with, and the scans it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.errors import PrecheckError
from precheck.pipeline import judged
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.lockstep.witness import Witness
    from precheck.records.progress import Observer
    from precheck.records.prompts import Prompt
    from precheck.records.report import Report

NUM_GENERATED = 8
"""Tokens that are written behind a prompt, before and after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FixRequest:
    """What was asked for."""

    dtype: Dtype = Dtype.FLOAT16
    headroom_bits: float = 2.0
    """To be left everywhere, where that is possible."""
    may_break: bool = False
    """Rescale also where it is not exact."""
    is_dry_run: bool = False
    overwrite: bool = False
    device: str = "auto"
    max_memory: int | None = None
    """Bytes that a scan may take."""
    revision: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A checkpoint and what is to become of it."""

    checkpoint: Checkpoint
    output: Path
    request: FixRequest
    peaks: dict[tuple[str, str, int], float]
    """How large each operation's result became in float32."""
    observe: Observer
    attn_implementation: str = ""
    """What the checkpoint is loaded with unless something else is asked for; empty: not known."""


def scanned(
    job: Job,
    checkpoint: Checkpoint,
    *,
    dtypes: Sequence[Dtype],
    witness: Witness,
    prompts: Sequence[Prompt] | None = None,
) -> Report:
    """The report on the original or on the fixed checkpoint.

    Args:
        job: what was asked for.
        checkpoint: the original, or the fixed one.
        dtypes: those to run it in.
        witness: is shown what the report does not keep.
        prompts: probes; None takes the built-in ones, and writes nothing behind them.

    Raises:
        PrecheckError: the scan could not be completed.
    """
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import CheckpointSubject

    attn = job.attn_implementation
    request = Request(
        dtypes=tuple(dtypes),
        attn_implementations=(attn,) if attn else None,
        prompts=prompts,
        device=job.request.device,
        max_memory=job.request.max_memory,
        num_generated=0 if prompts is None else NUM_GENERATED,
        continues_own=False,
        witness=witness,
    )
    report = judged(CheckpointSubject(checkpoint), request, observe=job.observe)
    if not report.complete:
        raise PrecheckError(
            f"the scan was not completed: {report.incomplete_reason}",
            hint="see what stops it: precheck scan MODEL",
        )
    return report
