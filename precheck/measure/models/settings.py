"""Values of a config, also of one whose layers differ: transformers refuses to read those whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def text_config(model: nn.Module) -> Any:
    """The config of the part that reads and writes text."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def setting(config: Any, name: str) -> Any:
    """A value of a config; of those that differ from layer to layer the largest, None if absent."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # AmbiguousGlobalPerLayerAttributeError, since transformers 5.20
        found = [getattr(each, name, None) for each in config.per_layer_config]
    numbers = [each for each in found if isinstance(each, int | float)]
    return max(numbers) if numbers else next((each for each in found if each is not None), None)
