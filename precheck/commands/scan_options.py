"""Options that only ``precheck scan`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Dtypes = Annotated[
    str,
    typer.Option(metavar="LIST", help="Dtypes to measure, comma-separated."),
]
AttnImplementations = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Attention implementations to measure (default: the model's own, and eager).",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pickled weights, which can execute code."),
]
PromptText = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Run this prompt instead of the built-in ones. Repeatable."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Run the prompts in this file: one per line, or .jsonl with "text", "token_ids" or'
        ' "text" and "images".',
    ),
]
BuiltinProbes = Annotated[
    bool,
    typer.Option("--builtin-probes", help="Run the built-in prompts as well."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Run one short batch only.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory limit, e.g. 4GiB (default: all free memory)."),
]
Resident = Annotated[
    bool,
    typer.Option("--resident", help="Keep all weights in memory, once per dtype."),
]
Accumulations = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Dtypes that kernels accumulate in, float32 or float16 (default: float32; both for"
        " GPTQ and AWQ).",
    ),
]
NumGenerated = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Generate N tokens after each prompt, in every configuration, greedy and sampled.",
    ),
]
Static = Annotated[
    bool,
    typer.Option(
        "--static", help="Run nothing: use config, headers, weights and documented facts."
    ),
]
CapsuleFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write the layer that overflows here, with a script that reproduces it without the"
        " model.",
    ),
]
