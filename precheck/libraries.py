"""Which versions of the libraries precheck works with, and what to do about others."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from precheck.errors import LibraryVersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DISTRIBUTION = "precheck-llm"
MEASURING = frozenset(
    {"accelerate", "huggingface-hub", "safetensors", "tokenizers", "torch", "transformers"}
)
"""Libraries that measure; the versions of the others are left to pip."""


def check_libraries(
    *,
    required: Iterable[str] | None = None,
    installed: Callable[[str], str] = version,
) -> None:
    """Refuses versions outside the range that this precheck declares, before they fail somewhere.

    Args:
        required: requirements as a package's metadata writes them; None takes precheck's own.
        installed: the installed version of a distribution.

    Raises:
        LibraryVersionError: a library is missing, or of a version outside its range.
    """
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


def _own_requirements() -> Iterable[str]:
    try:
        return requires(DISTRIBUTION) or ()
    except PackageNotFoundError:  # run from its source, without an installation
        return ()
