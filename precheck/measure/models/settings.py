"""Values of a config, also where they differ from layer to layer, which transformers refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def text_config(model: nn.Module) -> Any:
    """The config of the part that reads and writes text."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def setting(config: Any, name: str) -> Any:
    """A value of a config, None if absent; the largest where it differs from layer to layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError, since transformers 5.20
        values = [getattr(layer_config, name, None) for layer_config in config.per_layer_config]
    numbers = [value for value in values if isinstance(value, int | float)]
    return max(numbers) if numbers else next((value for value in values if value is not None), None)
