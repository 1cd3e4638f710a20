"""The line of modeling code an operation comes from."""

from __future__ import annotations

import os
import sys
from pathlib import PurePath
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from types import CodeType, FrameType

_TORCH = f"{PurePath(torch.__file__).parent}{os.sep}"
_OWN = f"{PurePath(__file__).parents[2]}{os.sep}"
_RANK: dict[CodeType, int] = {}


def source_line(frame: FrameType | None) -> tuple[str, int]:
    """File and line of the innermost modeling frame, else of the innermost outside torch."""
    fallback: tuple[str, int] | None = None
    while frame is not None:
        code = frame.f_code
        rank = _RANK.get(code)
        if rank is None:
            rank = _RANK[code] = _frame_rank(code.co_filename)
        if rank == 2:  # noqa: PLR2004
            return code.co_filename, frame.f_lineno
        if rank == 1 and fallback is None:
            fallback = (code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return fallback or ("<unknown>", 0)


def path_on_python_path(filename: str) -> str | None:
    """Where a source file lies below the entry of ``sys.path`` it was imported from.

    None for code that was not imported from a file.
    """
    entries = sorted((f"{path}{os.sep}" for path in sys.path if path), key=len, reverse=True)
    entry = next((entry for entry in entries if filename.startswith(entry)), None)
    return None if entry is None else PurePath(filename.removeprefix(entry)).as_posix()


def _frame_rank(filename: str) -> int:
    """2 for modeling code, 1 for other code that is neither torch nor precheck, 0 for those."""
    if PurePath(filename).name.startswith("modeling_"):
        return 2
    return 0 if filename.startswith((_TORCH, _OWN, "<")) else 1
