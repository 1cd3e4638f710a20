"""Which versions of the libraries precheck works with, and what to do about others."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from precheck.errors import LibraryVersionError, first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DISTRIBUTION = "precheck-llm"
MEASURING = frozenset(
    {"accelerate", "huggingface-hub", "safetensors", "tokenizers", "torch", "transformers"}
)
"""Libraries that measure; the versions of the others are left to pip."""

_IMPORTING = frozenset({"importlib", "precheck", "transformers"})
"""Packages whose frames lead to the one that fails."""


def check_libraries(
    *,
    required: Iterable[str] | None = None,
    installed: Callable[[str], str] = version,
) -> None:
    """Refuses what would fail somewhere later: versions outside the range, a broken installation.

    Args:
        required: requirements as a package's metadata writes them; None takes precheck's own, and
            imports transformers, which takes seconds.
        installed: the installed version of a distribution.

    Raises:
        LibraryVersionError: Python leaves docstrings out; or a library is missing, of a version
            outside its range, or fails when transformers imports it.
    """
    if sys.flags.optimize > 1:  # transformers reads docstrings when it is imported
        raise LibraryVersionError(
            "Python without docstrings (python -OO or PYTHONOPTIMIZE=2), which transformers needs",
            hint="unset PYTHONOPTIMIZE, or set it to 1",
        )
    for text in _own_requirements() if required is None else required:
        requirement = Requirement(text)
        name, specifier = requirement.name, requirement.specifier
        if name.replace("_", "-") not in MEASURING:
            continue
        try:
            present = installed(name)
        except PackageNotFoundError:
            present = None
        if present is None or not specifier.contains(present, prereleases=True):
            state = "is not installed" if present is None else f"{present} is installed"
            raise LibraryVersionError(
                f"{name} {state} (expected {specifier})",
                hint=f'pip install "{name}{specifier}"',
            )
    if required is None:
        _check_import("transformers.modeling_utils")


def _check_import(module: str) -> None:
    """Imports a module; what it takes along may be built for another torch (torchvision)."""
    try:
        import_module(module)
    except Exception as error:  # a package may raise anything while it is imported
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        library = _raised_in(cause)
        raise LibraryVersionError(
            f"{library} is installed but cannot be imported: {type(cause).__name__}: "
            f"{first_line(cause)}",
            hint=f"pip install --force-reinstall {library} (the version for this torch), or do "
            f"without it: pip uninstall {library}",
        ) from error


def _raised_in(error: BaseException) -> str:
    """The package whose import fails: the last one that another package imports."""
    frames = traceback.walk_tb(error.__traceback__)
    packages = [str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in frames]
    others = [package for package in packages if package not in _IMPORTING]
    return others[0] if others else "transformers"


def _own_requirements() -> Iterable[str]:
    try:
        return requires(DISTRIBUTION) or ()
    except PackageNotFoundError:  # run from its source, without an installation
        return ()
