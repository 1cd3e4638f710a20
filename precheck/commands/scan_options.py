"""Options of ``precheck scan`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Dtypes = Annotated[
    str,
    typer.Option(metavar="LIST", help="Dtypes, comma separated."),
]
AttnImplementations = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Attention implementations; without it the model's default, and eager.",
    ),
]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Read pickled weights, which can run code."),
]
PromptText = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help="Probe with this text, not the built-in ones. Repeatable."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help='Probe with this file: a text a line, or .jsonl with "text", "token_ids" or'
        ' "text" and "images".',
    ),
]
BuiltinProbes = Annotated[
    bool,
    typer.Option("--builtin-probes", help="Keep the built-in probes too."),
]
Quick = Annotated[bool, typer.Option("--quick", help="One short batch.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Memory that the scan may take (4GiB); without it what is free."
    ),
]
Resident = Annotated[
    bool,
    typer.Option("--resident", help="Keep all weights in memory, once for each dtype."),
]
Accumulations = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="What kernels add up in: float16 shows what a kernel with float16 sums does;"
        " without it both for GPTQ and AWQ.",
    ),
]
NumGenerated = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Write N tokens behind each prompt in every run, greedily and sampled.",
    ),
]
Static = Annotated[
    bool,
    typer.Option("--static", help="Run nothing: config, headers, weights, and what is documented."),
]
CapsuleFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write the layer that overflows here, with a script that shows it without the model.",
    ),
]
