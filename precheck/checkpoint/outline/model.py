"""Which class a config's model has, and that model without memory for its parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import PreTrainedModel

from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn

Loader = Any
"""A model class or an auto class: what both have in common has no type."""

_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForMaskedLM",
    "AutoModel",
)


def model_class(config: transformers.PreTrainedConfig) -> Loader:
    """The class that the config's ``architectures`` names, else the auto class that knows it.

    Raises:
        UnsupportedModelError: no class takes this config.
    """
    for name in config.architectures or ():
        named = getattr(transformers, name, None)
        if isinstance(named, type) and issubclass(named, PreTrainedModel):
            return named
    remote = getattr(config, "auto_map", None) or {}
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if name in remote or type(config) in auto._model_mapping:  # noqa: SLF001  no public look-up
            return auto
    raise UnsupportedModelError(
        f"no model class for model_type {config.model_type!r}",
        hint="update transformers, or allow the checkpoint's own code with --trust-remote-code",
    )


def on_meta(
    loader: Loader, config: transformers.PreTrainedConfig, *, trust_remote_code: bool
) -> nn.Module:
    """The model that a config describes, its parameters and buffers on ``meta``.

    Args:
        loader: what ``model_class`` returned.
        config: of the model.
        trust_remote_code: whether Python code of the checkpoint may run.

    Raises:
        Exception: whatever the class raises for this config.
    """
    with quiet_transformers(), torch.device("meta"):
        model: nn.Module
        if issubclass(loader, PreTrainedModel):
            model = loader._from_config(config)  # noqa: SLF001  its only spelling
        else:
            model = loader.from_config(config, trust_remote_code=trust_remote_code)
    return model
