"""One of the decoder layers that are alike: enough to trace a model of a hundred layers."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from precheck.measure.models.settings import setting, text_config
from precheck.signals import deferred_signals

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture

_NUMBERS = frozenset({"layer_idx", "layer_id", "layer_number"})
"""Attributes in which layers differ that are alike."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShortModel:
    """A model with one decoder layer of each kind."""

    model: Any
    """Without memory for its parameters; its buffers are copies."""
    members: tuple[tuple[int, ...], ...]
    """For each of its layers the numbers of those that it stands for, the first of them first."""


def one_of_each(model: nn.Module, layout: Architecture) -> ShortModel:
    """A copy of ``model`` on ``meta`` with one layer of each kind; ``model`` does not change."""
    layers = list(model.get_submodule(layout.decoder_layers)._modules.values())  # noqa: SLF001
    types = setting(text_config(model), "layer_types") or ()
    alike: dict[object, list[int]] = {}
    for index, layer in enumerate(layers):
        alike.setdefault((_kind(layer), *types[index : index + 1]), []).append(index)
    members = sorted(map(tuple, alike.values()))
    kept = {id(layers[indices[0]]) for indices in members}
    # what the memo knows is not copied, which would take as long as the layers are many
    memo: dict[int, Any] = {id(layer): nn.Identity() for layer in layers if id(layer) not in kept}
    memo |= {id(parameter): on_meta(parameter) for parameter in model.parameters()}
    with deferred_signals():
        short = copy.deepcopy(model, memo)
    own = short.get_submodule(layout.decoder_layers)
    own._modules = {  # noqa: SLF001  a ModuleList has no other way to drop several
        str(place): own.get_submodule(str(indices[0])) for place, indices in enumerate(members)
    }
    return ShortModel(model=short, members=tuple(members))


def on_meta(parameter: Tensor) -> Tensor:
    """A parameter like this one, without memory."""
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)


def _kind(layer: Any) -> object:
    """Equal for layers that are alike: classes, shapes, and settings but their number."""
    return tuple(
        (
            name,
            type(module),
            tuple((key, tuple(each.shape)) for key, each in module.named_parameters(recurse=False)),
            tuple(
                (key, value)
                for key, value in sorted(vars(module).items())
                if isinstance(value, bool | int | float | str) and key not in _NUMBERS
            ),
        )
        for name, module in layer.named_modules()
    )
