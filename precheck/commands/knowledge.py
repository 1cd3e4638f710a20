"""``precheck explain``, ``gpus`` and ``env``: what is known, and what this machine has."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from precheck.commands import completion, terminal
from precheck.commands.importing import import_torch
from precheck.commands.options import Debug
from precheck.errors import ExitCode
from precheck.facts.devices import find, of, table
from precheck.facts.findings import explanations, find_explanations
from precheck.facts.symptoms import find_symptom
from precheck.records.plain import plain
from precheck.render.parts.environment import environment_facts
from precheck.render.parts.json_text import json_text
from precheck.render.screens.devices import render_device, render_devices
from precheck.render.screens.explanation import render_codes, render_explanation
from precheck.render.screens.selftest import render_selftest
from precheck.render.screens.symptoms import render_symptom, render_symptoms
from precheck.selftest import selftest
from precheck.version import __version__


def explain(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            help="A code (PC301 or 301), a word, or what you see (!!!!); without it, all are"
            " listed.",
            autocompletion=completion.codes,
        ),
    ] = None,
    *,
    debug: Debug = False,
) -> None:
    """Explain a finding, or what to run first for a symptom. Works offline."""
    del debug
    width, colour = shutil.get_terminal_size().columns, terminal.has_colour()
    symptom = None if code is None else find_symptom(code)
    if symptom is not None:
        terminal.write_stdout(render_symptom(symptom, width=width, colour=colour))
        return
    found = tuple(explanations().values()) if code is None else find_explanations(code)
    if len(found) == 1:
        terminal.write_stdout(render_explanation(found[0], width=width, colour=colour))
        return
    terminal.write_stdout(render_codes(found, width=width, colour=colour))
    if code is None:
        terminal.write_stdout(render_symptoms(width=width, colour=colour))


def env(
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--selftest",
            help="Scan models with planted faults and test the device's arithmetic (seconds): can"
            " verdicts be trusted here? Exit code 1: no.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Device to test: auto, cpu, cuda:0 or mps.")
    ] = "auto",
    debug: Debug = False,
) -> None:
    """Print versions, devices and drivers for a bug report."""
    del debug
    if check:
        _selftest(device)
        return
    from precheck.measure.machine.environment import read_environment

    facts = (("precheck", __version__), *environment_facts(read_environment()))
    terminal.write_stdout("\n".join(f"- {label}: {value}" for label, value in facts))


def _selftest(device: str) -> None:
    import_torch()
    checks = list(selftest(device))
    width, colour = shutil.get_terminal_size().columns, terminal.has_colour()
    terminal.write_stdout(render_selftest(checks, width=width, colour=colour))
    if not all(check.holds for check in checks if check.is_needed):
        raise typer.Exit(ExitCode.GATE_FAILS)


def gpus(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Show everything known about this one: T4, sm_75, gfx942.",
            autocompletion=completion.gpus,
        ),
    ] = None,
    *,
    check: Annotated[
        bool,
        typer.Option("--check", help="Measure what float16 products accumulate in here (seconds)."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    debug: Debug = False,
) -> None:
    """List this machine's devices and all known ones, with the dtypes that are native."""
    del debug
    width, colour = shutil.get_terminal_size().columns, terminal.has_colour()
    if name is not None:
        device = find(name)
        if as_json:
            terminal.write_stdout(json_text(plain(device)))
        else:
            terminal.write_stdout(render_device(device, width=width, colour=colour))
        return
    from precheck.measure.machine.devices import find_devices

    present = find_devices()
    if as_json:
        known = {row.id: plain(find(row.id)) for row in table().device}
        here = [plain(of(device)) for device in present]
        measured = {"measured": _checked()} if check else {}
        terminal.write_stdout(json_text({"here": here, "known": known, **measured}))
        return
    terminal.write_stdout(render_devices(present, width=width, colour=colour))
    if check:
        terminal.write_stdout(f"\n{_checked()}")


def _checked() -> str:
    """What was measured on the device that a scan would use."""
    from precheck.measure.machine.arithmetic_check import check_sums
    from precheck.measure.machine.devices import resolve_device

    device = resolve_device("auto")
    check = check_sums(device)
    return f"measured on {device}: {check.what} {check.found}"
