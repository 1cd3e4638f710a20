"""Lines of a model's code that clamp values into the range of their dtype."""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

_CLAMPS = frozenset({"clamp", "clamp_", "clip", "clip_", "nan_to_num", "nan_to_num_"})
_LIMITS = frozenset({"finfo", "isinf"})
"""A clamp in a function that asks for one of these is about the range of a dtype."""


def clamps(model: nn.Module) -> tuple[str, ...]:
    """``modeling_t5.py:151`` for every such line in the classes the model is made of.

    The code is read as text, never run.
    """
    classes: dict[str, set[str]] = {}
    for each in model.modules():
        kind = type(each)
        if "modeling_" in kind.__module__:
            classes.setdefault(kind.__module__, set()).add(kind.__name__)
    return tuple(
        line for module, names in sorted(classes.items()) for line in _in_module(module, names)
    )


def _in_module(module: str, names: set[str]) -> Iterator[str]:
    try:
        file = inspect.getsourcefile(sys.modules[module])
        tree = ast.parse(Path(file or "").read_text(encoding="utf-8"))
    except (OSError, TypeError, SyntaxError, KeyError):  # code without a file that can be read
        return
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in names:
            for function in ast.walk(node):
                if isinstance(function, ast.FunctionDef) and _asks_for_limits(function):
                    for line in _clamping_lines(function):
                        yield f"{Path(file or '').name}:{line}"


def _asks_for_limits(function: ast.FunctionDef) -> bool:
    return any(
        isinstance(each, ast.Attribute) and each.attr in _LIMITS for each in ast.walk(function)
    )


def _clamping_lines(function: ast.FunctionDef) -> list[int]:
    return sorted(
        {
            each.lineno
            for each in ast.walk(function)
            if isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr in _CLAMPS
        }
    )
