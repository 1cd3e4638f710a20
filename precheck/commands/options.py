"""Options that several commands share, spelled once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from precheck.commands import arguments, completion
from precheck.facts.engines import EngineName
from precheck.judge.gate import FailOn
from precheck.records.mechanism import Mechanism
from precheck.render import SUFFIXES, Format

FAIL_ON = partial(arguments.choice, FailOn, what="severity")

MODEL_PANEL = "The model"
MEASURE_PANEL = "What to measure"
JUDGE_PANEL = "What to judge"
WRITE_PANEL = "What to write"
SHOW_PANEL = "What to show"

DTYPES = "float16,bfloat16,float32"
"""What is measured by default."""

# main() reads the flag itself, because it needs it before the arguments are parsed.
Debug = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks of errors.", rich_help_panel=SHOW_PANEL)
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Local folder, Hub id, or demo:NAME.",
        autocompletion=completion.models,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="REV", help="Branch, tag or commit of a Hub id.", rich_help_panel=MODEL_PANEL
    ),
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="auto, cpu, cuda:0 or mps.", rich_help_panel=MEASURE_PANEL),
]
Dtypes = Annotated[
    str,
    typer.Option(
        metavar="LIST",
        help="Dtypes to measure, comma-separated; auto is the checkpoint's own.",
        autocompletion=completion.dtypes,
        rich_help_panel=MEASURE_PANEL,
    ),
]
AttnImplementations = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Attention implementations to measure (default: the model's own, and eager).",
        autocompletion=completion.attentions,
        rich_help_panel=MEASURE_PANEL,
    ),
]
KvCacheDtypes = Annotated[
    str | None,
    typer.Option(
        "--kv-cache-dtype",
        metavar="LIST",
        help="Formats of the key-value cache to measure, e.g. fp8_e4m3,int8; all for every one.",
        autocompletion=completion.cache_formats,
        rich_help_panel=MEASURE_PANEL,
    ),
]
Quantizations = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        metavar="LIST",
        help="Formats of the weights to measure, e.g. fp8,int4,nvfp4; all for every one.",
        autocompletion=completion.weight_formats,
        rich_help_panel=MEASURE_PANEL,
    ),
]
PromptText = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="Run this prompt instead of the built-in ones. Repeatable.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Run the prompts in this file: one per line, or .jsonl with "text", "token_ids" or'
        ' "text" and "images".',
        rich_help_panel=MEASURE_PANEL,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory limit, e.g. 4GiB (default: all free memory).",
        rich_help_panel=MEASURE_PANEL,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Allow code that comes with the checkpoint to run.",
        rich_help_panel=MODEL_PANEL,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        help="No progress and no table; the line with PASS, FAIL or INCOMPLETE stays.",
        rich_help_panel=SHOW_PANEL,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Show all tables, findings and advice.", rich_help_panel=SHOW_PANEL
    ),
]
DeployedFor = Annotated[
    EngineName,
    typer.Option(
        "--for",
        metavar="ENGINE",
        parser=partial(arguments.choice, EngineName, what="engine"),
        autocompletion=completion.values(EngineName),
        help=f"Engine to show the command for: {', '.join(EngineName)}.",
        rich_help_panel=JUDGE_PANEL,
    ),
]
Gpus = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GPU",
        help="Judge and advise for this GPU (T4, sm_75), not the one found. Repeatable.",
        autocompletion=completion.gpus,
        rich_help_panel=JUDGE_PANEL,
    ),
]
Output = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help=f"Write the report here; the suffix selects the format ({', '.join(SUFFIXES)})."
        " Repeatable.",
        rich_help_panel=WRITE_PANEL,
    ),
]
StdoutFormat = Annotated[
    Format,
    typer.Option(
        "--format",
        metavar="FORMAT",
        parser=partial(arguments.choice, Format, what="format"),
        autocompletion=completion.values(Format),
        help=f"Format on stdout: {', '.join(Format)}.",
        rich_help_panel=SHOW_PANEL,
    ),
]
Card = Annotated[
    Path | None,
    typer.Option(
        "--card",
        metavar="FILE",
        help="Write a section for the model card here.",
        rich_help_panel=WRITE_PANEL,
    ),
]
Redact = Annotated[
    bool | None,
    typer.Option(
        "--redact/--no-redact",
        help="Redact home folders, user names, tokens and private prompts. Default: only in"
        " Markdown and model cards.",
        rich_help_panel=WRITE_PANEL,
    ),
]
AllLayers = Annotated[
    bool,
    typer.Option(
        "--all-layers", help="Show every layer; implies --verbose.", rich_help_panel=SHOW_PANEL
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline",
        metavar="FILE",
        help="Accept the findings listed in this file, each with a reason (--format baseline"
        " writes one).",
        rich_help_panel=JUDGE_PANEL,
    ),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        metavar="DTYPE[+ATTN]",
        help="Configuration that must be usable, e.g. float16+sdpa (default: the checkpoint's own"
        " dtype and attention). Repeatable.",
        autocompletion=completion.configurations,
        rich_help_panel=JUDGE_PANEL,
    ),
]
RequireProof = Annotated[
    str | None,
    typer.Option(
        "--require-proof",
        metavar="LIST",
        help="Mechanisms that must be proved not to overflow for every prompt, e.g."
        " scores,gated_product; needs --prove.",
        autocompletion=completion.values(Mechanism),
        rich_help_panel=JUDGE_PANEL,
    ),
]
FailOnOption = Annotated[
    FailOn,
    typer.Option(
        "--fail-on",
        metavar="SEVERITY",
        parser=FAIL_ON,
        autocompletion=completion.values(FailOn),
        help="Lowest severity that makes the exit code 1: error, warning or never.",
        rich_help_panel=JUDGE_PANEL,
    ),
]
