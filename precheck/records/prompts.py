"""Prompts that are more than text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrompt:
    """A text about one or more images."""

    text: str
    images: tuple[str, ...]
    """Paths."""


Prompt = str | Sequence[int] | ImagePrompt
"""A text, token ids, or a text with images."""
