"""The command line: parse, call the pipeline, render, exit."""

from __future__ import annotations

import gc
import shutil
import sys
import traceback
import warnings
from enum import StrEnum
from functools import partial
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from precheck import __version__, arguments, pipeline, terminal
from precheck.errors import ExitCode, PrecheckError, ScanInterrupted, UsageError
from precheck.judge.gate import FailOn, gate
from precheck.records.report import Report
from precheck.render import RENDERERS, render_console

app = typer.Typer(
    name="precheck",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: the README holds it, and a test compares them
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# main() reads the flag itself, because it has to know before the arguments are parsed.
Debug = Annotated[bool, typer.Option("--debug", help="Show the tracebacks of errors.")]


class StdoutFormat(StrEnum):
    """How the report is written to stdout."""

    TABLE = "table"
    JSON = "json"


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
    """Does this model run in half precision here? If not: which operation breaks it, and why."""


@app.command()
def scan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Local folder, Hub id, or demo:NAME.")
    ],
    *,
    revision: Annotated[
        str | None,
        typer.Option(metavar="REV", help="Branch, tag or commit of a Hub id."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(metavar="LIST", help="Dtypes, comma separated."),
    ] = "float16,bfloat16,float32",
    attn: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Attention implementations; without it the model's default, and eager.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(metavar="DEVICE", help="auto, cpu, cuda:0 or mps."),
    ] = "auto",
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint."),
    ] = False,
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Read pickled weights, which can run code."),
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Probe with this text, not the built-in ones. Repeatable."
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Probe with this file: a text a line, or .jsonl with "text", "token_ids" or'
            ' "text" and "images".',
        ),
    ] = None,
    builtin_probes: Annotated[
        bool,
        typer.Option("--builtin-probes", help="Keep the built-in probes too."),
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One short batch.")] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory that the scan may take (4GiB); without it what is free."
        ),
    ] = None,
    resident: Annotated[
        bool,
        typer.Option("--resident", help="Keep all weights in memory, once for each dtype."),
    ] = False,
    accumulation: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What kernels add up in: float16 shows what a kernel with float16 sums does;"
            " without it both for GPTQ and AWQ.",
        ),
    ] = None,
    generate: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Write N tokens behind each prompt in every run, greedily and sampled.",
        ),
    ] = 0,
    static: Annotated[
        bool,
        typer.Option(
            "--static", help="Run nothing: config, headers, weights, and what is documented."
        ),
    ] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help=f"Write the report here ({' or '.join(RENDERERS)}). Repeatable.",
        ),
    ] = None,
    stdout_format: Annotated[
        StdoutFormat,
        typer.Option("--format", help="Format on stdout."),
    ] = StdoutFormat.TABLE,
    all_layers: Annotated[
        bool,
        typer.Option("--all-layers", help="Show every layer."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    debug: Debug = False,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU", help="Advise for this GPU (T4, sm_75), not the one found. Repeatable."
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DTYPE+ATTN",
            help="Fail unless this one is good, such as float16+sdpa; without it the checkpoint's"
            " own dtype and attention. Repeatable.",
        ),
    ] = None,
    fail_on: Annotated[FailOn, typer.Option(help="What makes the exit code 1.")] = FailOn.ERROR,
) -> None:
    """Measure MODEL in every dtype and attention implementation, and say which to use.

    Exit code 0: the gate holds, 1: it does not, 2: usage, 3: not completed.
    """
    del debug
    is_first = terminal.is_first_process()
    quiet = quiet or not is_first
    outputs = output if output is not None and is_first else []
    for path in outputs:
        arguments.check_output(path)
    required = tuple(map(arguments.configuration, require or ()))
    with terminal.progress(quiet=quiet) as observe:
        try:
            measured = partial(
                pipeline.scan,
                model,
                dtypes=arguments.dtypes(dtype),
                attn_implementations=arguments.names(attn, flag="--attn")
                if attn is not None
                else None,
                prompts=arguments.prompts(prompt or (), prompts),
                device=device,
                revision=revision,
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
                gpus=tuple(gpu or ()),
                require=required,
                builtin_probes=builtin_probes,
                quick=quick,
                max_memory=arguments.size(max_memory, flag="--max-memory"),
                resident=resident,
                accumulations=arguments.names(accumulation, flag="--accumulation")
                if accumulation is not None
                else None,
                generate=generate,
                static=static,
                observe=observe,
            )
            _import_torch()
            report = measured()
        except KeyboardInterrupt as interrupted:
            terminal.say("interrupted")
            if isinstance(interrupted, ScanInterrupted) and isinstance(interrupted.partial, Report):
                _write_files(interrupted.partial, outputs)
                for path in outputs:
                    terminal.say(f"what was measured until then is in {path}")
            raise typer.Exit(ExitCode.INTERRUPTED) from interrupted
    if not is_first:
        return  # it has told the first process what it found
    try:
        terminal.write_stdout(
            _on_stdout(report, stdout_format=stdout_format, all_layers=all_layers)
        )
    finally:
        _write_files(report, outputs)
    outcome = gate(report, require=required, fail_on=fail_on)
    if not quiet:
        for reason in outcome.reasons:
            terminal.say(f"gate {'holds' if outcome.holds else 'fails'}: {reason}")
    raise typer.Exit(_exit_code(report, holds=outcome.holds))


def _on_stdout(report: Report, *, stdout_format: StdoutFormat, all_layers: bool) -> str:
    match stdout_format:
        case StdoutFormat.JSON:
            return RENDERERS[".json"].render(report)
        case StdoutFormat.TABLE:
            return render_console(
                report,
                width=shutil.get_terminal_size().columns,
                colour=terminal.has_colour(),
                all_layers=all_layers,
            )


def _write_files(report: Report, outputs: list[Path]) -> None:
    """Write every file, also those after one that fails: a scan is expensive."""
    failures: list[UsageError] = []
    for path in outputs:
        try:
            terminal.write_whole(path, RENDERERS[path.suffix].render(report))
        except UsageError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _exit_code(report: Report, *, holds: bool) -> ExitCode:
    if not report.complete:
        return ExitCode.INCOMPLETE
    return ExitCode.GATE_HOLDS if holds else ExitCode.GATE_FAILS


@app.command()
def demo(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Built-in model to save.")
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Save it here.")
    ] = None,
    scan_all: Annotated[
        bool, typer.Option("--scan", help="Scan all of them, a line each (a minute).")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the built-in models, save one as a checkpoint, or scan them all."""
    del debug
    from precheck.checkpoint.gallery import GALLERY

    if scan_all:
        _scan_gallery(list(GALLERY))
        return
    if name is None:
        longest = max(map(len, GALLERY))
        titles = (f"demo:{each:{longest}}  {entry.title}" for each, entry in GALLERY.items())
        hint = "scan one: precheck scan demo:NAME; all of them: precheck demo --scan"
        terminal.write_stdout("\n".join((*titles, "", hint)))
        return
    name = name.removeprefix("demo:")
    if name not in GALLERY:
        raise UsageError(
            f"unknown built-in model: {name!r} (expected {', '.join(GALLERY)})",
            hint="precheck demo lists them",
        )
    if output is None:
        raise UsageError(
            "no folder to save the model in (expected -o DIR)", hint=f"precheck demo {name} -o DIR"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(
            f"output folder is not empty: {str(output)!r}", hint="choose a folder that is not there"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create folder: {str(output)!r}: {error.strerror}") from error
    GALLERY[name].build(output)
    terminal.write_stdout(f"saved; scan it: precheck scan {output}")


def _scan_gallery(names: list[str]) -> None:
    from precheck.render.gallery_table import render_gallery

    _import_torch()
    reports: dict[str, Report] = {}
    with terminal.progress(quiet=False) as observe:
        for name in names:
            reports[name] = pipeline.scan(f"demo:{name}", observe=observe)
    terminal.write_stdout(
        render_gallery(
            reports,
            width=shutil.get_terminal_size().columns,
            colour=terminal.has_colour(),
        )
    )


@app.command()
def gpus(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="All that is known of this one: T4, sm_75, gfx942."),
    ] = None,
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Measure what float16 products are added up in here (seconds)."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """List the devices here and those that are known, with what they compute natively."""
    del debug
    from precheck.facts.devices import find
    from precheck.render.device_table import render_device, render_devices

    width, colour = shutil.get_terminal_size().columns, terminal.has_colour()
    if name is not None:
        terminal.write_stdout(render_device(find(name), width=width, colour=colour))
        return
    from precheck.probe.devices import find_devices

    found = find_devices()
    terminal.write_stdout(render_devices(found, width=width, colour=colour))
    if check:
        terminal.write_stdout(f"\n{_checked()}")


def _checked() -> str:
    """What was measured of the device that a scan would use."""
    from precheck.probe.device_check import float16_sums
    from precheck.probe.environment import resolve_device

    device = resolve_device("auto")
    found = float16_sums(device)
    said = "float16: partial sums overflow" if found is None else found.replace("_", " ")
    return f"measured on {device}: float16 products are added up in {said}"


def _import_torch() -> None:
    """Imports what scans; its million objects stay until the end and are not worth collecting.

    Not looking for garbage among them, again and again while they are imported and once more at
    the end, saves each process 0.7 of 3.0 and 0.75 of 0.9 seconds.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        for name in ("precheck.checkpoint.source", "precheck.probe.measure"):
            import_module(name)
    finally:
        gc.enable()
    gc.freeze()


def main() -> NoReturn:
    """Run the command line, and end the process with one of ``ExitCode``."""
    debug = "--debug" in sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        # A report quotes tokens in any script; a terminal without it is no reason to fail.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")  # what libraries tell their callers is not for this reader
    try:
        app(prog_name="precheck")
    except PrecheckError as error:
        code, message, hint = error.exit_code, error.message, error.hint
        trace = traceback.format_exc()
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
