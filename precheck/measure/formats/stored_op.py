"""Storing in a format as one operation, which the watcher sees as it sees any other."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from precheck.facts.formats import cache_format, weight_format
from precheck.measure.formats.numbers import as_stored

if TYPE_CHECKING:
    from precheck.facts.formats import Numbers
    from precheck.measure.formats.parts import Parts


class Stored(StrEnum):
    """What is stored."""

    KEYS = "keys"
    VALUES = "values"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


def store(
    part: str,
    tensor: Tensor,
    what: Stored,
    name: str,
    *,
    parts: Parts | None = None,
    largest: float | None = None,
) -> Tensor:
    """What is read back of a tensor that was stored in the format ``name``, in its own dtype.

    It is an operation of torch: in a watched run it has a module and a line of modeling code.

    Args:
        part: what it belongs to: a layer of the cache, or a matrix.
        tensor: what to store.
        what: which of the format's numbers store it.
        name: of the format.
        parts: is shown the tensor and what is read back.
        largest: the number that a scale was calibrated for; None takes that of the tensor.
    """
    stored: Tensor = torch.ops.precheck.as_stored(tensor, what.value, name, largest)
    if parts is not None and tensor.numel():
        with _disable_current_modes():
            parts.add(f"{part}.{what}", tensor, stored, _numbers(what, name), largest=largest)
    return stored


@torch.library.custom_op("precheck::as_stored", mutates_args=())
def _as_stored(tensor: Tensor, what: str, name: str, largest: float | None) -> Tensor:
    return as_stored(tensor, _numbers(what, name), calibrated_amax=largest)


def _numbers(what: str, name: str) -> Numbers:
    is_cache = what in {Stored.KEYS, Stored.VALUES}
    numbers: Numbers = getattr(cache_format(name) if is_cache else weight_format(name), what)
    return numbers
