"""``precheck diff``: two saved reports compared, or two sets of weights of one model."""

from __future__ import annotations

import json
import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from precheck.commands import terminal
from precheck.commands.importing import import_torch
from precheck.commands.options import Debug
from precheck.errors import ExitCode, UsageError
from precheck.judge.comparison.difference import difference
from precheck.render.screens.difference import render_difference
from precheck.render.screens.weights_cost import render_weights_cost
from precheck.saved import read_report

if TYPE_CHECKING:
    from precheck.records.outcomes.difference import Difference
    from precheck.records.outcomes.weights_cost import WeightsCost


class DiffFormat(StrEnum):
    """Format of a difference."""

    TABLE = "table"
    JSON = "json"


def diff(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="A JSON report, or a model: folder, GGUF file, Hub id."),
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="What to compare it with: of the same kind.")
    ],
    *,
    stdout_format: Annotated[
        DiffFormat, typer.Option("--format", help="Format on stdout.")
    ] = DiffFormat.TABLE,
    quick: Annotated[
        bool, typer.Option("--quick", help="Of models: run one short batch only.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Of models: show no progress.")] = False,
    debug: Debug = False,
) -> None:
    """Compare two saved reports, or the weights of two models.

    Reports: what differs, and the most likely reason.

    Models: a model and a quantised copy of it, run side by side in float32.

    Exit code 0: the same, or it costs little, 1: they differ, 3: unreadable.
    """
    del debug
    is_report = [_is_report(name) for name in (first, second)]
    if any(is_report) and not all(is_report):
        raise UsageError(
            f"a report and a model: {first!r} and {second!r} (expected two of a kind)",
            hint="precheck scan MODEL -o REPORT.json makes a report of a model",
        )
    if all(is_report):
        found = difference(read_report(Path(first)), read_report(Path(second)))
        _write(found, stdout_format, _report_table(found, names=(first, second)))
        raise typer.Exit(ExitCode.GATE_HOLDS if found.is_empty else ExitCode.GATE_FAILS)
    cost = _weighed(first, second, quick=quick, quiet=quiet)
    table = render_weights_cost(cost, width=_width(), colour=terminal.has_colour())
    _write(cost, stdout_format, table)
    raise typer.Exit(ExitCode.GATE_FAILS if cost.too_much else ExitCode.GATE_HOLDS)


def _is_report(name: str) -> bool:
    """Whether it is meant as a report: by its suffix, or a file (or a pipe) that is no GGUF."""
    path = Path(name)
    is_file = path.exists() and not path.is_dir()
    return path.suffix == ".json" or (is_file and path.suffix != ".gguf")


def _weighed(first: str, second: str, *, quick: bool, quiet: bool) -> WeightsCost:
    from precheck import pipeline

    with terminal.progress(quiet=quiet) as observe:
        import_torch(observe)
        return pipeline.weigh(first, second, quick=quick, observe=observe)


def _report_table(found: Difference, *, names: tuple[str, str]) -> str:
    return render_difference(found, names=names, width=_width(), colour=terminal.has_colour())


def _write(found: Difference | WeightsCost, stdout_format: DiffFormat, table: str) -> None:
    if stdout_format is DiffFormat.JSON:
        table = json.dumps(msgspec.to_builtins(found), allow_nan=False, indent=2)
    terminal.write_stdout(table)


def _width() -> int:
    return shutil.get_terminal_size().columns
