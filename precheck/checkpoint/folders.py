"""Whether something can be written into a folder that is not there yet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from precheck.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def check_empty(folder: Path, *, what: str, hint: str) -> None:
    """Nothing, if the folder is not there or has nothing in it.

    Args:
        folder: where something is to be written.
        what: how messages call it, ``output folder``.
        hint: what to do instead.

    Raises:
        UsageError: it is a file, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{what} is not empty: {str(folder)!r}", hint=hint)


def check_parent(folder: Path, *, hint: str) -> None:
    """Nothing, if a folder can be made there.

    Raises:
        UsageError: what it is to lie in is not there, or cannot be written to.
    """
    parent = folder.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write into: {str(parent)!r}", hint=hint)
