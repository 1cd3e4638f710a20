"""``precheck report``: a saved report in another format, or through the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precheck.commands.gating import Gating
from precheck.commands.options import (
    AllLayers,
    Baseline,
    Card,
    Debug,
    FailOnOption,
    Output,
    Redact,
    Require,
    StdoutFormat,
)
from precheck.commands.writing import plan_writing
from precheck.errors import UsageError
from precheck.judge.gate import FailOn
from precheck.render import Format
from precheck.saved import read_report


def report(
    saved: Annotated[
        Path, typer.Argument(metavar="REPORT", help="A report in JSON, of any version 1.")
    ],
    *,
    stdout_format: StdoutFormat = Format.TABLE,
    output: Output = None,
    card: Card = None,
    redact: Redact = None,
    all_layers: AllLayers = False,
    require: Require = None,
    baseline: Baseline = None,
    fail_on: FailOnOption = FailOn.NEVER,
    debug: Debug = False,
) -> None:
    """Show a saved report, write it in other formats, or gate on it.

    Exit code 0, unless --fail-on asks for a gate; 3: REPORT cannot be read.
    """
    del debug
    if require and fail_on is FailOn.NEVER:
        raise UsageError(
            "--require without a gate (expected --fail-on error or warning)",
            hint="add --fail-on error",
        )
    writing = plan_writing(
        output=output,
        card=card,
        stdout_format=stdout_format,
        redact=redact,
        all_layers=all_layers,
    )
    gating = Gating.of(require=require, baseline=baseline, fail_on=fail_on)
    accepted = gating.accept(read_report(saved))
    try:
        writing.on_stdout(accepted)
    finally:
        writing.into_files(accepted)
    if fail_on is not FailOn.NEVER:
        raise typer.Exit(gating.exit_code(accepted, quiet=False))
