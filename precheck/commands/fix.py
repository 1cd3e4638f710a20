"""``precheck fix``: a checkpoint that runs in float16, unchanged in what it computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from precheck.commands import arguments, terminal
from precheck.commands.options import Debug, Device, Model, Quiet, Revision, TrustRemoteCode
from precheck.commands.scan import import_torch
from precheck.errors import ExitCode, UsageError
from precheck.measure.processes import num_processes
from precheck.records.precision import Dtype
from precheck.saved import read_report


def fix(
    model: Model,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Write the checkpoint here.")
    ],
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A JSON report of this checkpoint, instead of a scan."),
    ] = None,
    for_dtype: Annotated[
        str, typer.Option("--for", metavar="DTYPE", help="What it is to run in.")
    ] = "float16",
    headroom_bits: Annotated[
        float, typer.Option(metavar="BITS", min=0.0, max=8.0, help="Bits to be left everywhere.")
    ] = 2.0,
    allow_approximate: Annotated[
        bool,
        typer.Option(
            "--allow-approximate",
            help="Rescale also where it is not exact; the proof decides.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the folder if it is there.")
    ] = False,
    revision: Revision = None,
    device: Device = "auto",
    max_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory that scans may take (4GiB)."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Rescale MODEL by powers of two so that it runs in float16, and prove that it does.

    Exit code 0: it runs, 1: no cure was found or proved, 2: usage, 3: not completed.
    """
    del debug
    # not every command waits for them
    from precheck.cure.job import FixRequest
    from precheck.render.screens.fix import render_fix

    if num_processes() > 1:
        raise UsageError(
            f"{num_processes()} processes to fix one checkpoint (expected one)",
            hint="start it without accelerate launch",
        )
    given = None if report is None else read_report(report)
    request = FixRequest(
        dtype=Dtype.named(for_dtype),
        headroom_bits=headroom_bits,
        may_break=allow_approximate,
        is_dry_run=dry_run,
        overwrite=overwrite,
        device=device,
        max_memory=arguments.size(max_memory, flag="--max-memory"),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    try:
        with terminal.progress(quiet=quiet) as observe:
            import_torch()
            from precheck.cure.fix import fix as fix_checkpoint  # it imports torch

            done = fix_checkpoint(model, output, request=request, report=given, observe=observe)
    except KeyboardInterrupt as interrupted:
        terminal.say("interrupted; nothing was written")
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupted
    width = shutil.get_terminal_size().columns
    terminal.write_stdout(render_fix(done, width=width, colour=terminal.has_colour()))
    raise typer.Exit(ExitCode.GATE_HOLDS if done.holds else ExitCode.GATE_FAILS)
