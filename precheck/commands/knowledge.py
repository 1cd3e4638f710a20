"""``precheck explain``, ``gpus`` and ``env``: what is known, and what is here."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from precheck.commands import terminal
from precheck.commands.options import Debug
from precheck.commands.scan import import_torch
from precheck.errors import ExitCode
from precheck.facts.devices import find
from precheck.facts.findings import explanation, explanations
from precheck.render.parts.environment import environment_facts
from precheck.render.screens.devices import render_device, render_devices
from precheck.render.screens.explanation import render_codes, render_explanation
from precheck.render.screens.selftest import render_selftest
from precheck.selftest import selftest
from precheck.version import __version__


def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="CODE", help="Such as PC301; without it all are listed.")
    ] = None,
    *,
    debug: Debug = False,
) -> None:
    """Say what a finding means: example, cause, cure, what does not help, sources. Offline."""
    del debug
    width, colour = shutil.get_terminal_size().columns, terminal.has_colour()
    if code is None:
        terminal.write_stdout(render_codes(explanations().values(), width=width, colour=colour))
        return
    terminal.write_stdout(render_explanation(explanation(code), width=width, colour=colour))


def env(
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--selftest",
            help="Scan planted faults here and try the device's arithmetic (seconds): can verdicts"
            " be trusted? Exit code 1: no.",
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where to do so: auto, cpu, cuda:0 or mps.")
    ] = "auto",
    debug: Debug = False,
) -> None:
    """Print versions, devices and drivers, as a bug report needs them."""
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
        typer.Argument(metavar="NAME", help="All that is known of this one: T4, sm_75, gfx942."),
    ] = None,
    *,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Measure what float16 products are added up in here (seconds)."
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """List the devices here and those that are known, with what they compute natively."""
    del debug
    width, colour = shutil.get_terminal_size().columns, terminal.has_colour()
    if name is not None:
        terminal.write_stdout(render_device(find(name), width=width, colour=colour))
        return
    from precheck.measure.machine.devices import find_devices

    present = find_devices()
    terminal.write_stdout(render_devices(present, width=width, colour=colour))
    if check:
        terminal.write_stdout(f"\n{_checked()}")


def _checked() -> str:
    """What was measured of the device that a scan would use."""
    from precheck.measure.machine.arithmetic_check import check_sums
    from precheck.measure.machine.devices import resolve_device

    device = resolve_device("auto")
    check = check_sums(device)
    return f"measured on {device}: {check.what} {check.found}"
