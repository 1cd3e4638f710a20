"""Lines of a model's code that clamp values into the range of their dtype."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_CLAMPS = frozenset({"clamp", "clamp_", "clip", "clip_", "nan_to_num", "nan_to_num_"})
_LIMITS = frozenset({"finfo", "isinf"})
"""A clamp in a function that uses one of these is about the range of a dtype."""


def clamps(model: nn.Module) -> tuple[str, ...]:
    """Lines that clamp, in the classes the model is made of: ``modeling_t5.py:151``.

    The code is read as text, never run.
    """
    classes: dict[str, set[str]] = {}
    for module in model.modules():
        kind = type(module)
        if "modeling_" in kind.__module__:
            classes.setdefault(kind.__module__, set()).add(kind.__name__)
    return tuple(
        line
        for python_module, names in sorted(classes.items())
        for line in _in_classes(python_module, frozenset(names))
    )


def _in_classes(python_module: str, names: frozenset[str]) -> list[str]:
    try:
        file = Path(inspect.getsourcefile(sys.modules[python_module]) or "")
        lines = _lines_in_classes(file.read_text(encoding="utf-8"), names)
    except (OSError, TypeError, SyntaxError, KeyError):  # code without a file that can be read
        return []
    return [f"{file.name}:{line}" for line in lines]


@cache  # a service scans many models of a few classes
def _lines_in_classes(code: str, names: frozenset[str]) -> tuple[int, ...]:
    return tuple(
        line
        for node in ast.parse(code).body
        if isinstance(node, ast.ClassDef) and node.name in names
        for function in ast.walk(node)
        if isinstance(function, ast.FunctionDef) and _uses_limits(function)
        for line in _clamping_lines(function)
    )


def _uses_limits(function: ast.FunctionDef) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in _LIMITS for node in ast.walk(function)
    )


def _clamping_lines(function: ast.FunctionDef) -> list[int]:
    return sorted(
        {
            node.lineno
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in _CLAMPS
        }
    )
