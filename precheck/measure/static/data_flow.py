"""What follows from the data flow of decoder layers, key biases and bounds; or why nothing does."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precheck.errors import PrecheckError, first_line
from precheck.measure.static.key_biases import key_biases
from precheck.measure.static.layer_bounds import layer_bounds
from precheck.measure.static.traced_layers import trace_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from precheck.checkpoint.architecture import Architecture
    from precheck.records.outcomes.layer_bounds import LayerBound
    from precheck.records.sizes import KeyValueRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What small tensors come to in the layers that have them."""

    key_values: tuple[KeyValueRange, ...] = ()
    layer_bounds: tuple[LayerBound, ...] = ()
    failure: str | None = None
    """Why the rest is not known."""


def follow(
    model: nn.Module,
    layout: Architecture,
    *,
    vectors: Mapping[str, Tensor],
    numbers: Mapping[str, Tensor],
) -> Followed:
    """What the layers of a model make of the numbers that are at hand.

    A layer without biases and norms gives nothing, and that is no failure.

    Args:
        model: with or without its weights; it does not change.
        layout: its units.
        vectors: stored tensors of one dimension, by the model's names, float32 on the CPU.
        numbers: parameters for the bounds, which are those of float16; empty: no bounds.
    """
    found = Followed()
    try:
        traced = trace_layers(model, layout)
        found = replace(found, key_values=key_biases(traced, layout, vectors))
        if numbers:
            found = replace(found, layer_bounds=layer_bounds(traced, numbers))
    except Exception as error:  # noqa: BLE001  code of any model, rules for any operation
        return replace(found, failure=_reason(error))
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, PrecheckError):
        return error.message
    return f"{type(error).__name__}: {first_line(error)}"
