"""``precheck diff``: two saved reports compared."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from precheck.commands import terminal
from precheck.commands.options import Debug
from precheck.errors import ExitCode
from precheck.judge.comparison.difference import difference
from precheck.render.screens.difference import render_difference
from precheck.saved import read_report


class DiffFormat(StrEnum):
    """Format of a difference."""

    TABLE = "table"
    JSON = "json"


def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A JSON report.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The report to compare it with.")],
    *,
    stdout_format: Annotated[
        DiffFormat, typer.Option("--format", help="Format on stdout.")
    ] = DiffFormat.TABLE,
    debug: Debug = False,
) -> None:
    """Compare two saved reports: what differs, and the most likely reason.

    Exit code 0: same verdicts, figures and findings, 1: they differ, 3: unreadable.
    """
    del debug
    differing = difference(read_report(first), read_report(second))
    if stdout_format is DiffFormat.JSON:
        text = json.dumps(msgspec.to_builtins(differing), allow_nan=False, indent=2)
    else:
        text = render_difference(
            differing,
            names=(str(first), str(second)),
            width=shutil.get_terminal_size().columns,
            colour=terminal.has_colour(),
        )
    terminal.write_stdout(text)
    raise typer.Exit(ExitCode.GATE_HOLDS if differing.is_empty else ExitCode.GATE_FAILS)
