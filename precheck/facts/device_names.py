"""Names of devices as people write them: products with their memory, and capabilities."""

from __future__ import annotations

import re

_MEMORY = re.compile(r"(\d+)\s*gi?b", re.IGNORECASE)
_CAPABILITY = re.compile(r"sm_?(\d+)(\d)[af]?", re.IGNORECASE)
_DOTTED = re.compile(r"(\d+)\.(\d)")
_WORDS_AROUND = re.compile(
    r"\b(nvidia|geforce|tesla|amd|intel|huawei|apple|instinct|generation|graphics|blackwell|"
    r"workstation|server|edition|pcie|sxm\d?|hbm\d\w?|oam|gpu)\b"
)
"""Words of makers, boards and memories that stand next to a product's name."""


def capability_in(name: str) -> str | None:
    """The compute capability that a name is, spelled as the table spells it.

    >>> capability_in("SM75"), capability_in("7.5"), capability_in("T4")
    ('sm_75', 'sm_75', None)
    """
    match = _CAPABILITY.fullmatch(name.strip()) or _DOTTED.fullmatch(name.strip())
    return f"sm_{match[1]}{match[2]}" if match else None


def capability_numbers(compute_capability: str) -> tuple[int, int] | None:
    """Major and minor of an NVIDIA compute capability; None for other names.

    >>> capability_numbers("sm_120"), capability_numbers("gfx942")
    ((12, 0), None)
    """
    match = _CAPABILITY.fullmatch(compute_capability)
    return (int(match[1]), int(match[2])) if match else None


def memory_in(name: str) -> float | None:
    """The memory in GiB that a name carries.

    >>> memory_in("A100 80GB"), memory_in("A100")
    (80.0, None)
    """
    match = _MEMORY.search(name)
    return float(match[1]) if match else None


def product_key(name: str) -> str:
    """What is left of a product's name without makers, boards, memory and punctuation.

    >>> product_key("NVIDIA GeForce RTX 3090 24GB")
    'rtx3090'
    """
    words = re.sub(r"[-_/(),]", " ", _MEMORY.sub(" ", name.casefold()))
    return "".join(letter for letter in _WORDS_AROUND.sub(" ", words) if letter.isalnum())
