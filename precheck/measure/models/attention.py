"""The attention implementation of a model: which one is in use, and switching it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from precheck.checkpoint.config import attention_named_in
from precheck.errors import UnsupportedConfigurationError, first_line
from precheck.measure.models.skeleton import twin
from precheck.records.attention import as_argument, is_split, spelled

if TYPE_CHECKING:
    from torch import nn

    from precheck.records.attention import Attention


def switch_attention(model: nn.Module, attn_implementation: str) -> str:
    """Makes ``model`` use another attention implementation; returns the one that it then uses.

    A spelling with parts is returned as it is.

    Raises:
        UnsupportedConfigurationError: the model or this environment does not have it.
    """
    if attn_implementation == attention_of(model):
        return attn_implementation
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedConfigurationError(
            f"the attention implementation of {type(model).__name__} cannot be chosen",
        )
    _set_attention(model, as_argument(attn_implementation))
    return attn_implementation if is_split(attn_implementation) else attention_of(model)


def plain_attention(model: nn.Module, named: Attention | None) -> str:
    """The attention implementation that a plain ``from_pretrained`` uses, as it is spelled.

    Args:
        model: loaded without the attention that its config names.
        named: that attention.
    """
    if named is None:
        return attention_of(model)
    if isinstance(named, str) or not can_switch_attention(model):
        return spelled(named)
    try:
        plain = _switched(model, named)
        parts = _attention_by_module(plain)
        for name in set(parts.values()):
            if _attention_by_module(_switched(model, name)) == parts:
                return name
        return spelled(attention_named_in(plain.config) or named)
    except UnsupportedConfigurationError:
        return spelled(named)


def _switched(model: nn.Module, attention: Attention) -> Any:
    switched = twin(model)
    _set_attention(switched, attention)
    return switched


def _set_attention(model: Any, attention: Attention) -> None:
    try:
        model.set_attn_implementation(attention)
    except Exception as error:  # transformers raises ValueError, ImportError, and kernels' own
        raise UnsupportedConfigurationError(first_line(error)) from error


def _attention_by_module(model: nn.Module) -> dict[str, str]:
    """What every module that attends uses, by its name."""
    return {
        name: attention_of(module)
        for name, module in model.named_modules()
        if hasattr(module, "config") and not isinstance(module, PreTrainedModel)
    }


def attention_of(model: nn.Module) -> str:
    """The attention implementation in use; modules without such a choice are ``eager``."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) or "eager"


def can_switch_attention(model: nn.Module) -> bool:
    """Whether the implementation can change after construction."""
    return isinstance(model, PreTrainedModel) and model._can_set_attn_implementation()  # noqa: SLF001  its only spelling
