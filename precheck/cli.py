"""The command line: its commands, and the one place where an error becomes an exit code."""

from __future__ import annotations

import sys
import traceback
import warnings
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from precheck.commands import terminal
from precheck.commands.demo import demo
from precheck.commands.difference import diff
from precheck.commands.fix import fix
from precheck.commands.hunt import hunt
from precheck.commands.knowledge import env, explain, gpus
from precheck.commands.report import report
from precheck.commands.scan import scan
from precheck.commands.verify import verify
from precheck.errors import ExitCode, PrecheckError
from precheck.signals import end_once
from precheck.version import __version__

app = typer.Typer(
    name="precheck",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (scan, report, diff, fix, hunt, verify, explain, demo, gpus, env):
    app.command()(command)


def _print_version(value: bool) -> None:
    if value:
        terminal.write_stdout(f"precheck {__version__}")
        raise typer.Exit


@app.callback()
def precheck(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Does this model run in half precision here? If not: which operation breaks it, and why?"""


def _prepare_process(*, debug: bool) -> None:
    end_once()
    for stream in (sys.stdout, sys.stderr):
        # A report quotes tokens in any script; a terminal that lacks one is no reason to fail.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # library warnings are not meant for the user


def main() -> NoReturn:
    """Run the command line, and end the process with one of ``ExitCode``."""
    debug = "--debug" in sys.argv[1:]
    _prepare_process(debug=debug)
    try:
        app(prog_name="precheck")
    except PrecheckError as error:
        code, message, hint = error.exit_code, error.message, error.hint
        trace = traceback.format_exc()
    except MemoryError:
        code, trace = ExitCode.INCOMPLETE, traceback.format_exc()
        message, hint = (
            "out of memory",
            "measure fewer dtypes with --dtype, or use --quick or --static",
        )
    except Exception as error:  # noqa: BLE001  the one place where a bug becomes an exit code
        code = ExitCode.BUG
        message = f"bug in precheck: {type(error).__name__}: {error}"
        hint = "please report it, with the output of --debug"
        trace = traceback.format_exc()
    if debug:
        terminal.write_stderr(trace)
    terminal.say(f"error: {message}")
    if hint:
        terminal.say(f"hint: {hint}")
    sys.exit(code)
