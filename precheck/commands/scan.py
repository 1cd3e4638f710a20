"""``precheck scan``: measure, judge, render, gate."""

from __future__ import annotations

import gc
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from precheck import pipeline
from precheck.commands import arguments, terminal
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
from precheck.errors import ExitCode, ScanInterrupted
from precheck.judge.gate import FailOn
from precheck.measure.processes import is_first_process
from precheck.records.report import Report
from precheck.render import Format


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
    capsule: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write the layer that overflows here, with a script that shows it without the"
            " model.",
        ),
    ] = None,
    output: Output = None,
    card: Card = None,
    stdout_format: StdoutFormat = Format.TABLE,
    redact: Redact = None,
    all_layers: AllLayers = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    debug: Debug = False,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU", help="Advise for this GPU (T4, sm_75), not the one found. Repeatable."
        ),
    ] = None,
    require: Require = None,
    baseline: Baseline = None,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Measure MODEL in every dtype and attention implementation, and say which to use.

    Exit code 0: the gate holds, 1: it does not, 2: usage, 3: not completed.
    """
    del debug
    is_first = is_first_process()
    quiet = quiet or not is_first
    own = arguments.prompts(prompt or (), prompts)
    writing = plan_writing(
        output=output if is_first else None,
        card=card if is_first else None,
        stdout_format=stdout_format,
        redact=redact,
        all_layers=all_layers,
        prompts=own,
    )
    gating = Gating.of(require=require, baseline=baseline, fail_on=fail_on)
    attns = None if attn is None else arguments.names(attn, flag="--attn")
    sums = None if accumulation is None else arguments.names(accumulation, flag="--accumulation")
    report: Report | None = None
    try:
        with terminal.progress(quiet=quiet) as observe:
            chosen = arguments.dtypes(dtype)
            memory = arguments.size(max_memory, flag="--max-memory")
            import_torch()
            report = pipeline.scan(
                model,
                dtypes=chosen,
                attn_implementations=attns,
                prompts=own,
                device=device,
                revision=revision,
                trust_remote_code=trust_remote_code,
                allow_pickle=allow_pickle,
                gpus=tuple(gpu or ()),
                require=gating.require,
                builtin_probes=builtin_probes,
                quick=quick,
                max_memory=memory,
                resident=resident,
                accumulations=sums,
                generate=generate,
                static=static,
                capsule=capsule,
                observe=observe,
            )
        if not is_first:
            return  # it has told the first process what it found
        report = gating.accept(report)
        try:
            writing.on_stdout(report)
        finally:
            writing.into_files(report)
    except KeyboardInterrupt as interrupted:
        terminal.say("interrupted")
        if isinstance(interrupted, ScanInterrupted) and isinstance(interrupted.partial, Report):
            report = interrupted.partial
        if report is not None:
            writing.into_files(report)
            for path, _ in writing.files:
                terminal.say(f"what was measured until then is in {path}")
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupted
    raise typer.Exit(gating.exit_code(report, quiet=quiet))


def import_torch() -> None:
    """Imports what scans; its million objects stay until the end and are not worth collecting.

    Not looking for garbage among them, again and again while they are imported and once more at
    the end, saves each process 0.7 of 3.0 and 0.75 of 0.9 seconds.
    """
    if "torch" in sys.modules:
        return
    from precheck.libraries import check_libraries

    check_libraries()
    gc.disable()
    try:
        for name in ("precheck.checkpoint.source", "precheck.measure.measure"):
            import_module(name)
    finally:
        gc.enable()
    if "triton" not in sys.modules:  # which tells on stderr of whatever is not collected
        gc.freeze()
