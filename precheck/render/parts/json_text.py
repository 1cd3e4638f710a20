"""JSON that a terminal can show: what would act on one is escaped."""

from __future__ import annotations

import json
import re

_NOT_ASCII = re.compile(r"[^\n -~]")


def json_text(tree: object) -> str:
    r"""An object as indented JSON; letters of any language stay readable.

    C1 controls, marks that reorder a line and half surrogate pairs are written as escapes.

    Raises:
        ValueError: a figure is not finite, which JSON cannot say and a report never holds.

    >>> print(json_text(["上海", "\x9b31m\u202e"]), end="")
    [
      "上海",
      "\u009b31m\u202e"
    ]
    """
    text = json.dumps(tree, allow_nan=False, indent=2, ensure_ascii=False)
    return f"{_NOT_ASCII.sub(_escaped, text)}\n"


def _escaped(match: re.Match[str]) -> str:
    return match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1]
