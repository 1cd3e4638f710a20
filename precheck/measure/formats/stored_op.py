"""Storing in a format as one operation, which the watcher sees as it sees any other."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from precheck.facts.formats import cache_format, weight_format
from precheck.measure.formats.numbers import as_stored


class Stored(StrEnum):
    """What is stored."""

    KEYS = "keys"
    VALUES = "values"
    WEIGHTS = "weights"
    ACTIVATIONS = "activations"


def store(tensor: Tensor, what: Stored, name: str) -> Tensor:
    """What is read back of a tensor that was stored in the format ``name``, in its own dtype.

    It is an operation of torch: in a watched run it has a module and a line of modeling code.
    """
    stored: Tensor = torch.ops.precheck.as_stored(tensor, what.value, name)
    return stored


@torch.library.custom_op("precheck::as_stored", mutates_args=())
def _as_stored(tensor: Tensor, what: str, name: str) -> Tensor:
    is_cache = what in {Stored.KEYS, Stored.VALUES}
    numbers = getattr(cache_format(name) if is_cache else weight_format(name), what)
    return as_stored(tensor, numbers)
