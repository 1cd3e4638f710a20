"""Options that only ``precheck scan`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from precheck.commands import completion
from precheck.commands.options import MEASURE_PANEL, MODEL_PANEL, WRITE_PANEL

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
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read pickled weights, which can execute code.",
        rich_help_panel=MODEL_PANEL,
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
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory limit, e.g. 4GiB (default: all free memory).",
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
        help="Run nothing: use config, headers, weights and documented facts.",
        rich_help_panel=MEASURE_PANEL,
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
