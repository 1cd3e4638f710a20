"""transformers' loader without the regular expressions that it compiles and never uses.

For each stored tensor that is one parameter it makes a ``WeightRenaming`` from one full name to
another, and that compiles a pattern of the name, half a millisecond each, which nothing searches
with. Here a pattern is compiled when something does.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers import core_model_loading

if TYPE_CHECKING:
    from collections.abc import Iterator


class LatePattern:
    """A regular expression that is compiled when it is used; all else is the pattern's."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._pattern)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # who copies looks for methods of its own
            raise AttributeError(name)
        return getattr(self._compiled, name)


@contextmanager
def late_patterns() -> Iterator[None]:
    """Inside, patterns that transformers' loader makes are compiled when they are used."""
    module: Any = core_model_loading
    before = module.re
    module.re = SimpleNamespace(**{**vars(re), "compile": LatePattern})
    try:
        yield
    finally:
        module.re = before
