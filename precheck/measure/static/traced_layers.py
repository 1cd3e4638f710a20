"""The decoder layers of a model, one of each kind traced without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.measure.bounds.lengths import trace_any_length
from precheck.measure.models.attention import switch_attention
from precheck.measure.models.settings import setting, text_config
from precheck.measure.subject.one_of_each import one_of_each
from precheck.measure.trace.flow import traceable
from precheck.measure.trace.stream import traced_layer

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.bounds.lengths import TracedForward
    from precheck.measure.subject.one_of_each import ShortModel
    from precheck.measure.trace.stream import TracedLayer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TracedLayers:
    """Layers of each kind, in the data flow of a forward over a text of any length."""

    path: str
    """Of the stack: ``model.layers``."""
    short: ShortModel
    forward: TracedForward
    """Of the short model, with eager attention."""
    layers: tuple[TracedLayer, ...]
    """Those of the short model, in order."""


def trace_layers(model: nn.Module, layout: Architecture) -> TracedLayers:
    """The data flow of a model's decoder layers.

    Args:
        model: with or without its weights; it does not change.
        layout: its units.

    Raises:
        UntraceableError: it cannot be traced.
        UnsupportedConfigurationError: the model has no eager attention.
    """
    short = one_of_each(model, layout)
    _keep_layer_types(short)
    switch_attention(short.model, "eager")
    forward = trace_any_length(traceable(short.model))
    path = layout.decoder_layers
    return TracedLayers(
        path=path,
        short=short,
        forward=forward,
        layers=tuple(
            traced_layer(forward.flow, f"{path}.{place}", grows=forward.grows)
            for place in range(len(short.members))
        ),
    )


def _keep_layer_types(short: ShortModel) -> None:
    """A forward looks up what each layer is by its place."""
    config = text_config(short.model)
    types = setting(config, "layer_types")
    if not types:
        return
    own = [types[indices[0]] for indices in short.members]
    try:
        config.layer_types = own
    except AttributeError:  # a property that is made of other settings
        name = config.attribute_map.get("layer_types", "layer_types")
        config.__class__ = type(type(config).__name__, (type(config),), {name: own})
