"""How an attention implementation is spelled: one name, or one for each part of a model.

transformers takes a name, or a dict with the parts that differ: ``{"text_config": "eager"}``.
"""

from __future__ import annotations

from typing import Any

Attention = str | dict[str, Any]
"""As ``attn_implementation`` takes it: by the name of a sub-config, "" for the model itself."""


def spelled(attention: Attention) -> str:
    """One line for it, as runs and reports have it.

    >>> spelled({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    'sdpa,text_config:eager'
    """
    if isinstance(attention, str):
        return attention
    own = attention.get("")
    parts = [
        f"{name}:{part}"
        for name, part in parts_of(attention)
        if part is not None and (part != own or not name)
    ]
    return ",".join(part.removeprefix(":") for part in parts)


def as_argument(name: str) -> Attention:
    """What ``attn_implementation`` takes in place of its spelling.

    >>> as_argument("sdpa,text_config:eager")
    {'': 'sdpa', 'text_config': 'eager'}
    >>> as_argument("kernels-community/flash-attn2:fn")
    'kernels-community/flash-attn2:fn'
    """
    if not is_split(name):
        return name
    tree: dict[str, Any] = {}
    for part in name.split(","):
        path, _, implementation = part.rpartition(":")
        *outer, last = path.split(".")
        inner = tree
        for key in outer:
            held = inner.get(key, {})
            inner[key] = held if isinstance(held, dict) else {"": held}
            inner = inner[key]
        inner[last] = implementation
    return tree


def is_split(name: str) -> bool:
    """Whether a spelling names parts of the model."""
    return "," in name or (":" in name and "/" not in name)


def parts_of(attention: Attention, prefix: str = "") -> list[tuple[str, Any]]:
    """Every name in it (None where a part has none), by the dotted path of its sub-config."""
    parts: list[tuple[str, Any]] = []
    for name, part in (attention if isinstance(attention, dict) else {"": attention}).items():
        path = f"{prefix}{name}"
        if isinstance(part, dict):
            parts += parts_of(part, f"{path}.")
        else:
            parts.append((path.removesuffix("."), part))
    return parts
