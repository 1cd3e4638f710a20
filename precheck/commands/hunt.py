"""``precheck hunt``: the prompt that leaves a model the least headroom."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from precheck.commands import arguments, completion, terminal
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
from precheck.errors import ExitCode, UsageError
from precheck.hunt.request import HuntRequest
from precheck.measure.processes import num_processes
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.hunt import Hunt
from precheck.records.precision import Dtype
from precheck.saved import read_json


def hunt(
    model: Model,
    *,
    minutes: Annotated[
        float, typer.Option(metavar="MINUTES", min=0.01, help="How long to search.")
    ] = 5.0,
    most_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="End after so many tokens too: the same inputs on any machine.",
        ),
    ] = None,
    mechanism: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.values(Mechanism),
            help="Search for the worst of these only, e.g. gated_product. Repeatable.",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="Dtype that is to overflow: float16 or bfloat16.")
    ] = "float16",
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of everything drawn.")] = 0,
    first: Annotated[
        bool, typer.Option("--first", help="End at the first prompt that exceeds the range.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Compare with one short batch of built-in probes, not all."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write the prompts here, for scan --prompts; images beside it.",
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Go on from this search if it exists, and save it there."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Show everything as JSON instead of a table.")
    ] = False,
    revision: Revision = None,
    device: Device = "auto",
    max_memory: MaxMemory = None,
    trust_remote_code: TrustRemoteCode = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search for the prompt that leaves MODEL the least headroom, and run it.

    Exit code 0: no prompt found overflows, 1: one does, 2: usage, 3: incomplete.
    """
    del debug
    # not every command waits for it
    from precheck.hunt.prompts import json_lines, saved_prompts
    from precheck.render.screens.hunt import render_hunt

    request = HuntRequest(
        dtype=_half(dtype),
        minutes=minutes,
        most_tokens=most_tokens,
        mechanisms=tuple(
            arguments.choice(Mechanism, name, what="mechanism")
            for name in (arguments.each(mechanism) if mechanism else ())
        ),
        seed=seed,
        ends_at_first=first,
        is_quick=quick,
        device=device,
        max_memory=arguments.size(max_memory, flag="--max-memory"),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    _check_files(output, resume)
    try:
        found = _hunted(model, request, resume=resume, quiet=quiet)
    except KeyboardInterrupt as interrupted:
        is_kept = resume is not None and resume.exists()
        kept = f"the search is in {resume}" if is_kept else "nothing was kept"
        terminal.say(f"interrupted; {kept}")
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupted
    if output is not None:
        terminal.write_whole(output, json_lines(saved_prompts(found, output)))
    if as_json:
        terminal.write_stdout(json.dumps(found.to_dict(), allow_nan=False, indent=1))
    else:
        width = shutil.get_terminal_size().columns
        written = None if output is None else str(output)
        terminal.write_stdout(
            render_hunt(found, output=written, width=width, colour=terminal.has_colour())
        )
    raise typer.Exit(ExitCode.GATE_FAILS if found.is_refuted else ExitCode.GATE_HOLDS)


def _hunted(model: str, request: HuntRequest, *, resume: Path | None, quiet: bool) -> Hunt:
    resumed = read_json(resume, what="search") if resume and resume.exists() else None
    with terminal.progress(quiet=quiet) as observe:
        import_torch(observe)
        from precheck.hunt.hunt import hunt as search_for_worst  # it imports torch

        def keep(text: str) -> None:
            if resume is not None:
                terminal.write_whole(resume, text)

        return search_for_worst(model, request=request, observe=observe, resumed=resumed, keep=keep)


def _half(name: str) -> Dtype:
    dtype = Dtype.named(name)
    if not dtype.is_half:
        raise UsageError(
            f"nothing overflows in {dtype} (expected float16 or bfloat16)", hint="--dtype float16"
        )
    return dtype


def _check_files(output: Path | None, resume: Path | None) -> None:
    """Refuses what would be found out after the search.

    Raises:
        UsageError: a file that cannot be written, or several processes.
    """
    if num_processes() > 1:
        raise UsageError(
            f"{num_processes()} processes to search with (expected 1)",
            hint="start it without accelerate launch",
        )
    if output is not None and output.suffix != ".jsonl":
        raise UsageError(
            f"the prompts are JSON lines: {str(output)!r} (expected a name that ends with .jsonl)",
            hint="-o worst.jsonl",
        )
    for path in (output, resume):
        if path is not None:
            arguments.check_output(path)
