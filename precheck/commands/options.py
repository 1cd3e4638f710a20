"""Options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precheck.facts.engines import EngineName
from precheck.judge.gate import FailOn
from precheck.render import SUFFIXES, Format

# main() reads the flag itself, because it has to know before the arguments are parsed.
Debug = Annotated[bool, typer.Option("--debug", help="Show the tracebacks of errors.")]

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Local folder, Hub id, or demo:NAME.")]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit of a Hub id."),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cpu, cuda:0 or mps."),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the checkpoint."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="No progress and no table; PASS or FAIL stays.")
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show all tables, findings and advice.")
]
DeployedFor = Annotated[EngineName, typer.Option("--for", help="Engine to show the command for.")]
Gpus = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GPU",
        help="Judge and advise for this GPU (T4, sm_75), not the one found. Repeatable.",
    ),
]
Output = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help=f"Write the report here; the suffix chooses the format ({', '.join(SUFFIXES)})."
        " Repeatable.",
    ),
]
StdoutFormat = Annotated[Format, typer.Option("--format", help="Format on stdout.")]
Card = Annotated[
    Path | None,
    typer.Option("--card", metavar="FILE", help="Write a section for the model card here."),
]
Redact = Annotated[
    bool | None,
    typer.Option(
        "--redact/--no-redact",
        help="Leave out home folders, user names, tokens and private prompts; without it in"
        " markdown and card alone.",
    ),
]
AllLayers = Annotated[
    bool, typer.Option("--all-layers", help="Show every layer; implies --verbose.")
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        help="Let findings pass that are listed here with a reason (--format baseline writes one).",
    ),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DTYPE[+ATTN]",
        help="Configuration to gate on, such as float16+sdpa (default: the checkpoint's own dtype"
        " and attention). Repeatable.",
    ),
]
FailOnOption = Annotated[FailOn, typer.Option("--fail-on", help="What makes the exit code 1.")]
