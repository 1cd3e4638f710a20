"""The marker ``pinned``: tests of what the libraries of constraints.txt hold, and of no others.

With others installed they are skipped (``tests/conftest.py``). Cases that are pinned wherever they
are tried have their reason once, by name, beside the data they come from.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "transformers", "typer")
"""Those whose releases differ in what the tests tell of them."""


def marks(name: str, reasons: Mapping[str, str]) -> list[pytest.MarkDecorator]:
    """The mark with the reason that the name has; none if it has none."""
    return [pytest.mark.pinned(reasons[name])] if name in reasons else []


def installed() -> dict[str, str]:
    """The releases that are installed, without what they were built for (``2.13.0+cpu``)."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


def tested() -> dict[str, str]:
    """The releases of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    return {name: pins[name] for name in LIBRARIES}


def skip_pinned(items: Iterable[pytest.Item], *, libraries: Mapping[str, str]) -> None:
    """Skip the marked tests, each with its reason, unless the libraries are the tested ones."""
    if libraries == tested():
        return
    here = ", ".join(f"{name} {release}" for name, release in libraries.items())
    for item in items:
        marker = item.get_closest_marker("pinned")
        if marker is not None:
            (reason,) = marker.args
            item.add_marker(pytest.mark.skip(reason=f"{reason}; here are {here}"))
