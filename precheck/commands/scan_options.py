"""Options that only ``precheck scan`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precheck.commands.options import MEASURE_PANEL, MODEL_PANEL, WRITE_PANEL

AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read pickled weights, which can execute code.",
        rich_help_panel=MODEL_PANEL,
    ),
]
BuiltinProbes = Annotated[
    bool,
    typer.Option(
        "--builtin-probes", help="Run the built-in prompts as well.", rich_help_panel=MEASURE_PANEL
    ),
]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="Run one short batch only.", rich_help_panel=MEASURE_PANEL),
]
Context = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Run a text of N tokens too, and tell what changes with the position; max for the"
        " model's own context.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
Prove = Annotated[
    bool,
    typer.Option(
        "--prove",
        help="Bound every operation of the 16-bit runs for every prompt, from the weights.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
ProveMinutes = Annotated[
    float,
    typer.Option(
        metavar="MINUTES",
        min=0.0,
        help="With --prove: look so long for better bounds where one does not fit.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
Resident = Annotated[
    bool,
    typer.Option(
        "--resident",
        help="Keep all weights in memory, once per dtype.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
Accumulations = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Dtypes that kernels accumulate in, float32 or float16 (default: float32; both for"
        " GPTQ and AWQ).",
        rich_help_panel=MEASURE_PANEL,
    ),
]
NumGenerated = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Generate N tokens after each prompt, in every configuration, greedy and sampled.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
Static = Annotated[
    bool,
    typer.Option(
        "--static",
        help="Run nothing: use config, headers, small tensors and documented facts.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
Full = Annotated[
    bool,
    typer.Option(
        "--full",
        help="With --static, read all weights.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read weights on the Hub when they are needed, and store nothing.",
        rich_help_panel=MEASURE_PANEL,
    ),
]
SaveLogits = Annotated[
    Path | None,
    typer.Option(
        "--save-logits",
        metavar="FILE",
        help="Write log-probabilities of every configuration here: verify --logits FILE compares a"
        " server with them, without the weights.",
        rich_help_panel=WRITE_PANEL,
    ),
]
CapsuleFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Write the layer that overflows here, with a script that reproduces it without the"
        " model.",
        rich_help_panel=WRITE_PANEL,
    ),
]
