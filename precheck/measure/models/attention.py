"""The attention implementation of a model: which one is in use, and switching it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from precheck.errors import UnsupportedConfigurationError, first_line

if TYPE_CHECKING:
    from torch import nn


def switch_attention(model: nn.Module, attn_implementation: str) -> str:
    """Makes ``model`` use another attention implementation; returns the one that it then uses.

    Raises:
        UnsupportedConfigurationError: the model or this environment does not have it.
    """
    if attn_implementation == attention_of(model):
        return attn_implementation
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedConfigurationError(
            f"attention implementation cannot be chosen for {type(model).__name__}",
        )
    try:
        model.set_attn_implementation(attn_implementation)
    except Exception as error:  # transformers raises ValueError, ImportError, and kernels' own
        raise UnsupportedConfigurationError(first_line(error)) from error
    return attention_of(model)


def attention_of(model: nn.Module) -> str:
    """The attention implementation in use; modules without such a choice are ``eager``."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"


def can_switch_attention(model: nn.Module) -> bool:
    """Whether the implementation can change after construction."""
    return isinstance(model, PreTrainedModel) and model._can_set_attn_implementation()  # noqa: SLF001  its only spelling
