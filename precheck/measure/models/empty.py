"""A checkpoint's model without its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from precheck.checkpoint.outline.model import model_class, on_meta
from precheck.checkpoint.outline.plausible_size import bounded_by
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.measure.models.from_pretrained import (
    load_error,
    read_generation_config,
    seeded_loading,
)
from precheck.measure.models.late_patterns import late_patterns
from precheck.measure.models.matching import Loading
from precheck.records.attention import as_argument

if TYPE_CHECKING:
    from torch import Tensor, nn

    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights
    from precheck.records.precision import Dtype


def empty_model(
    checkpoint: Checkpoint,
    stored: Weights,
    dtype: Dtype,
    *,
    attn_implementation: str | None = None,
) -> tuple[nn.Module, Loading]:
    """The model in one dtype without its weights, and what the checkpoint lacks.

    It is what ``from_pretrained`` makes of stand-ins for the stored tensors: modules, names,
    dtypes (those kept in float32 too), ties, buffers, and values for what the checkpoint lacks.
    Parameters and buffers that are stored are on ``meta``.

    Raises:
        CheckpointError: it does not load.
        UnsupportedConfigurationError: the model does not have this attention implementation.
    """
    loader = model_class(checkpoint.config)
    try:
        if not issubclass(loader, PreTrainedModel):
            loader = type(_on_meta(loader, checkpoint))
        with seeded_loading(checkpoint), late_patterns():
            model, info = loader.from_pretrained(
                None,
                config=checkpoint.config,
                state_dict={
                    name: StandIn(stored.shape(name), torch_dtype(stored.dtype(name)))
                    for name in stored
                },
                dtype=torch_dtype(dtype),
                attn_implementation=attn_implementation and as_argument(attn_implementation),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            read_generation_config(model, checkpoint)
    except Exception as error:
        raise load_error(error, attn_implementation, loader) from error
    return model, Loading.of(info)


class StandIn:
    """A stored tensor as transformers' loader takes it: indexed to be read, then moved and cast."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    def __getitem__(self, _: object) -> StandIn:
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of its shape in ``dtype``, without memory, whatever the device."""
        del device
        return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")


def bare_model(checkpoint: Checkpoint) -> nn.Module:
    """The model that a checkpoint's config describes, without memory for its parameters.

    Raises:
        CheckpointError: the model class does not take this config.
    """
    loader = model_class(checkpoint.config)
    try:
        return _on_meta(loader, checkpoint)
    except Exception as error:
        raise load_error(error, None, loader) from error


def count_parameters(checkpoint: Checkpoint) -> int:
    """Parameters of the model that a checkpoint's config describes.

    Raises:
        CheckpointError: the model class does not take this config.
    """
    model = bare_model(checkpoint)
    return sum(parameter.numel() for parameter in model.parameters())


def _on_meta(loader: Any, checkpoint: Checkpoint) -> nn.Module:
    is_packed = checkpoint.quantization is not None
    with bounded_by(checkpoint.headers.size_bytes, is_packed=is_packed):
        return on_meta(loader, checkpoint.config, trust_remote_code=checkpoint.trust_remote_code)
