"""``precheck fix``: a checkpoint that runs in float16 and computes the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from precheck.commands import arguments, terminal
from precheck.commands.importing import import_torch
from precheck.commands.options import (
    Debug,
    Device,
    MaxMemory,
    Model,
    Quiet,
    Revision,
    TrustRemoteCode,
)
from precheck.errors import ExitCode, UsageError, WrittenInterrupted
from precheck.measure.processes import num_processes
from precheck.records.outcomes.fix import Fix
from precheck.records.precision import Dtype
from precheck.saved import read_report


def fix(
    model: Model,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write the checkpoint to this folder."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Use this JSON report of the checkpoint instead of a scan."
        ),
    ] = None,
    for_dtype: Annotated[
        str, typer.Option("--for", metavar="DTYPE", help="Dtype that it must run in.")
    ] = "float16",
    headroom_bits: Annotated[
        float,
        typer.Option(
            metavar="BITS", min=0.0, max=8.0, help="Headroom to keep everywhere, in bits."
        ),
    ] = 2.0,
    allow_approximate: Annotated[
        bool,
        typer.Option(
            "--allow-approximate",
            help="Also rescale where it is not exact; the proof decides.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, without writing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it exists.")
    ] = False,
    remove_leftovers: Annotated[
        bool,
        typer.Option(
            "--remove-leftovers", help="Delete what killed runs left next to the output folder."
        ),
    ] = False,
    revision: Revision = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rescale MODEL by powers of two so that it runs in float16, and prove it.

    Exit code 0: it runs, 1: no cure was found or proved, 2: usage, 3: incomplete.
    """
    del debug
    # not every command waits for them
    from precheck.cure.job import FixRequest
    from precheck.render.screens.fix import render_fix

    if num_processes() > 1:
        raise UsageError(
            f"{num_processes()} processes to fix one checkpoint (expected 1)",
            hint="start it without accelerate launch",
        )
    if output is None and not dry_run:
        raise UsageError(
            "no output folder (expected -o DIR)", hint="or see what it would do: --dry-run"
        )
    given = None if report is None else read_report(report)
    request = FixRequest(
        dtype=Dtype.named(for_dtype),
        headroom_bits=headroom_bits,
        may_break=allow_approximate,
        is_dry_run=dry_run,
        overwrite=overwrite,
        remove_leftovers=remove_leftovers,
        device=device,
        max_memory=arguments.size(max_memory, flag="--max-memory"),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    done: Fix | None = None
    try:
        with terminal.progress(quiet=quiet) as observe:
            import_torch(observe)
            from precheck.cure.fix import fix as fix_checkpoint  # it imports torch

            done = fix_checkpoint(model, output, request=request, report=given, observe=observe)
        width = shutil.get_terminal_size().columns
        folder = None if output is None else str(output)
        terminal.write_stdout(
            render_fix(done, output=folder, width=width, colour=terminal.has_colour())
        )
    except KeyboardInterrupt as interrupted:
        is_written = isinstance(interrupted, WrittenInterrupted) or _is_written(done)
        what = f"the checkpoint is written: {output}" if is_written else "nothing was written"
        terminal.say(f"interrupted; {what}")
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupted
    raise typer.Exit(ExitCode.GATE_HOLDS if done.holds else ExitCode.GATE_FAILS)


def _is_written(done: Fix | None) -> bool:
    return done is not None and done.proof is not None and done.holds
