"""``precheck demo``: the built-in models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from precheck import pipeline
from precheck.checkpoint.output.folders import check_empty
from precheck.commands import completion, terminal
from precheck.commands.importing import import_torch
from precheck.commands.options import Debug
from precheck.errors import UsageError, unknown

if TYPE_CHECKING:
    from precheck.records.report import Report


def demo(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Built-in model to save.", autocompletion=completion.demos
        ),
    ] = None,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Save it in this folder.")
    ] = None,
    scan_all: Annotated[
        bool, typer.Option("--scan", help="Scan all of them, one line each (about a minute).")
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
        titles = (f"demo:{key:{longest}}  {entry.title}" for key, entry in GALLERY.items())
        hint = "scan one: precheck scan demo:NAME; all of them: precheck demo --scan"
        terminal.write_stdout("\n".join((*titles, "", hint)))
        return
    name = name.removeprefix("demo:")
    if name not in GALLERY:
        raise unknown("built-in model", name, GALLERY, hint="precheck demo lists them")
    if output is None:
        raise UsageError(
            "no folder to save the model in (expected -o DIR)", hint=f"precheck demo {name} -o DIR"
        )
    check_empty(output, what="output folder", hint="choose a new folder")
    import_torch()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create folder: {str(output)!r}: {error.strerror}") from error
    GALLERY[name].build(output)
    terminal.write_stdout(f"saved; scan it: precheck scan {output}")


def _scan_gallery(names: list[str]) -> None:
    from precheck.render.screens.gallery import render_gallery

    import_torch()
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
