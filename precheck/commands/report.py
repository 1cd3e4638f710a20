"""``precheck report``: a saved report in another format, or through the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precheck.commands import arguments, completion, terminal
from precheck.commands.browser import show_in_browser
from precheck.commands.gating import EXIT_CODES, Gating
from precheck.commands.options import (
    FAIL_ON,
    JUDGE_PANEL,
    SHOW_PANEL,
    AllLayers,
    Baseline,
    Card,
    Debug,
    DeployedFor,
    Gpus,
    Output,
    Quiet,
    Redact,
    Require,
    RequireProof,
    StdoutFormat,
    Verbose,
)
from precheck.commands.writing import Detail, plan_writing
from precheck.facts.engines import EngineName
from precheck.judge import judge_again
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
    quiet: Quiet = False,
    verbose: Verbose = False,
    all_layers: AllLayers = False,
    gpu: Gpus = None,
    deployed_for: DeployedFor = EngineName.TRANSFORMERS,
    require: Require = None,
    require_proof: RequireProof = None,
    baseline: Baseline = None,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            "--fail-on",
            metavar="SEVERITY",
            parser=FAIL_ON,
            autocompletion=completion.values(FailOn),
            help="Lowest severity that makes the exit code 1: error or warning (default: no gate).",
            rich_help_panel=JUDGE_PANEL,
        ),
    ] = None,
    open_: Annotated[
        bool,
        typer.Option("--open", help="Show it as HTML in the browser.", rich_help_panel=SHOW_PANEL),
    ] = False,
    debug: Debug = False,
) -> None:
    """Show a saved report, judge it for other GPUs, write it in other formats, or gate on it.

    Exit code 0, unless --require or --fail-on asks for a gate; 3: REPORT cannot be read.
    """
    del debug
    writing = plan_writing(
        output=output,
        card=card,
        stdout_format=stdout_format,
        redact=redact,
        detail=Detail.of(verbose=verbose, all_layers=all_layers),
        quiet=quiet,
    )
    is_gate = bool(require or require_proof) or fail_on not in {None, FailOn.NEVER}
    gating = Gating.of(
        require=require,
        require_proof=require_proof,
        baseline=baseline,
        fail_on=fail_on or FailOn.ERROR,
    )
    read = read_report(saved)
    gpus = arguments.each(gpu)
    accepted = gating.accept(judge_again(read, gpus=gpus) if gpus else read)
    outcome = gating.judge(accepted)
    try:
        writing.on_stdout(accepted, outcome, engine=deployed_for.label)
    finally:
        writing.into_files(accepted)
    if open_:
        show_in_browser(accepted)
    if is_gate:
        terminal.say(outcome.line)
        raise typer.Exit(EXIT_CODES[outcome.outcome])
