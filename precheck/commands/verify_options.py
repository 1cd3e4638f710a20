"""Options that only ``precheck verify`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precheck.commands.options import JUDGE_PANEL, MEASURE_PANEL, MODEL_PANEL, WRITE_PANEL

SERVER_PANEL = "The server"

Url = Annotated[
    str, typer.Argument(metavar="URL", help="Address of the engine, http://localhost:8000.")
]
ServedModel = Annotated[
    str | None,
    typer.Option(
        "--served-model",
        metavar="NAME",
        help="Name that the server has for MODEL (default: the first that it lists).",
        rich_help_panel=SERVER_PANEL,
    ),
]
ApiKeyEnv = Annotated[
    str,
    typer.Option(
        "--api-key-env",
        metavar="VARIABLE",
        help="Environment variable with the API key, if the server wants one.",
        rich_help_panel=SERVER_PANEL,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        max=3600.0,
        help="Time limit of each request.",
        rich_help_panel=SERVER_PANEL,
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=0,
        max=10,
        help="How often a request is sent again that the server failed to answer.",
        rich_help_panel=SERVER_PANEL,
    ),
]
Concurrency = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        max=64,
        help="Requests at once, to see whether company changes answers; 1: never.",
        rich_help_panel=SERVER_PANEL,
    ),
]
NumAsked = Annotated[
    int,
    typer.Option(
        "--generate",
        metavar="N",
        min=1,
        max=1024,
        help="Tokens to ask for after each prompt.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
ScanReport = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="JSON report of a scan of MODEL: its configurations are compared, its verdict stands"
        " beside.",
        rich_help_panel=MODEL_PANEL,
    ),
]
SavedLogitsFile = Annotated[
    Path | None,
    typer.Option(
        "--logits",
        metavar="FILE",
        help="What scan --save-logits wrote: compare with it, and ask for its prompts; no weights"
        " are needed.",
        rich_help_panel=MODEL_PANEL,
    ),
]
VerifyOutput = Annotated[
    list[Path] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write what was found here: .md is a bug report for the engine, .json everything."
        " Repeatable.",
        rich_help_panel=WRITE_PANEL,
    ),
]
RequireServed = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        metavar="DTYPE[+ATTN]",
        help="Configuration that the server must behave like, e.g. bfloat16+sdpa+kv:fp8_e4m3."
        " Repeatable: one of them.",
        rich_help_panel=JUDGE_PANEL,
    ),
]
