"""Checks that a folder can be written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from precheck.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def check_empty(folder: Path, *, what: str, hint: str) -> None:
    """Checks that a folder does not exist or is empty.

    Args:
        folder: where something is to be written.
        what: its name in messages, ``output folder``.
        hint: what to do instead.

    Raises:
        UsageError: it is a file, or not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{what} is not empty: {str(folder)!r}", hint=hint)


def check_parent(folder: Path, *, hint: str) -> None:
    """Checks that a folder can be created there.

    Raises:
        UsageError: its parent does not exist or cannot be written to.
    """
    parent = folder.resolve().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write into: {str(parent)!r}", hint=hint)
