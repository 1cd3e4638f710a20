"""Loading a checkpoint as a user will: transformers' own ``from_pretrained(dtype=...)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import CompressedTensorsConfig

from precheck.checkpoint.outline.model import model_class
from precheck.checkpoint.torch_dtypes import dtype_name, torch_dtype
from precheck.measure.models.from_pretrained import (
    load_error,
    read_generation_config,
    seeded_loading,
)
from precheck.measure.models.matching import Loading
from precheck.measure.models.model_dtypes import kept_in_float32
from precheck.records.attention import as_argument
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.quantization import Quantization
    from precheck.checkpoint.source import Checkpoint


def load_model(
    checkpoint: Checkpoint, dtype: Dtype, *, attn_implementation: str | None = None
) -> tuple[nn.Module, Loading]:
    """The model in one dtype, and what was missing; None takes the class's attention.

    Raises:
        CheckpointError: it does not load.
        MemoryExhaustedError: there is no room for it.
        UnsupportedConfigurationError: the model does not have this attention implementation.
    """
    loader = model_class(checkpoint.config)
    try:
        with seeded_loading(checkpoint):
            model, info = _load(
                loader,
                checkpoint,
                dtype=torch_dtype(dtype),
                attn_implementation=attn_implementation and as_argument(attn_implementation),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise load_error(error, attn_implementation, loader) from error
    return model, Loading.of(info)


def _load(loader: Any, checkpoint: Checkpoint, **settings: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The model with plain weights, and transformers' ``output_loading_info``."""
    quantization = checkpoint.quantization
    is_decoded_here = quantization is not None and quantization.is_decoded_here
    if is_decoded_here or checkpoint.unread:
        with checkpoint.open_weights() as stored:
            plain = {name: stored[name] for name in stored}
            model, info = loader.from_pretrained(
                None, config=checkpoint.config, state_dict=plain, **settings
            )
        read_generation_config(model, checkpoint)
    else:
        model, info = loader.from_pretrained(
            checkpoint.folder,
            use_safetensors=None if checkpoint.allow_pickle else True,
            trust_remote_code=checkpoint.trust_remote_code,
            local_files_only=True,
            **({} if quantization is None else _decoding(quantization)),
            **settings,
        )
        if quantization is not None:
            model = _decoded(model, quantization, settings["dtype"])
    return model, info


def _decoded(model: Any, quantization: Quantization, dtype: torch.dtype) -> nn.Module:
    """The model that transformers loaded, its weights plain and in ``dtype``."""
    decoded: nn.Module = model.dequantize(dtype) if quantization.method == "bitsandbytes" else model
    # some formats decode to a dtype of their own, whatever the model is loaded in
    kept = kept_in_float32(decoded, Dtype(dtype_name(dtype)))
    for name, parameter in decoded.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)
    return decoded


def _decoding(quantization: Quantization) -> dict[str, Any]:
    """Arguments that make transformers decode while it loads."""
    if quantization.method != "compressed-tensors":
        return {}
    settings = {**quantization.settings, "run_compressed": False}
    return {"quantization_config": CompressedTensorsConfig(**settings)}
