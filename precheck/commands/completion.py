"""What a shell offers after the first letters of a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.gallery import GALLERY
from precheck.facts import attention, devices, formats
from precheck.facts.findings import explanations
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def values(kind: Iterable[str]) -> Callable[[str], list[str]]:
    """Of a closed choice."""

    def offers(incomplete: str) -> list[str]:
        return _beginning(incomplete, kind)

    return offers


def models(incomplete: str) -> list[str]:
    """Built-in models; folders are completed by the shell."""
    return _beginning(incomplete, (f"demo:{name}" for name in GALLERY))


def demos(incomplete: str) -> list[str]:
    """Built-in models as ``precheck demo`` takes them."""
    return _beginning(incomplete, GALLERY)


def codes(incomplete: str) -> list[str]:
    """Findings, by code."""
    return _beginning(incomplete, explanations())


def gpus(incomplete: str) -> list[str]:
    """Names of products and compute capabilities."""
    rows = devices.table().device
    products = (product.name.replace(" ", "-") for row in rows for product in row.products)
    return _beginning(incomplete, (*products, *(row.id for row in rows)))


def dtypes(incomplete: str) -> list[str]:
    """The last name of a list of dtypes."""
    return _in_list(incomplete, Dtype)


def attentions(incomplete: str) -> list[str]:
    """The last name of a list of attention implementations."""
    return _in_list(incomplete, attention.names())


def cache_formats(incomplete: str) -> list[str]:
    """The last name of a list of formats of the key-value cache."""
    return _in_list(incomplete, (*formats.CACHE_FORMATS, "all"))


def weight_formats(incomplete: str) -> list[str]:
    """The last name of a list of formats of the weights."""
    return _in_list(incomplete, (*formats.WEIGHT_FORMATS, "all"))


def configurations(incomplete: str) -> list[str]:
    """``DTYPE+ATTN``."""
    pairs = (f"{dtype}+{name}" for dtype in Dtype for name in attention.names())
    return _beginning(incomplete, (*Dtype, *pairs))


def _in_list(incomplete: str, names: Iterable[str]) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    chosen = set(before.split(","))
    return [f"{before}{comma}{name}" for name in _beginning(last, names) if name not in chosen]


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    start = incomplete.casefold()
    return [str(name) for name in names if name.casefold().startswith(start)]
