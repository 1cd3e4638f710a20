"""What a subject is before anything runs: its tensors, its config, what it takes in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from precheck.checkpoint.architecture import token_embedding
from precheck.checkpoint.audit import tensor_dtypes
from precheck.checkpoint.quantization import DECODED_BY_TRANSFORMERS
from precheck.checkpoint.source import Checkpoint
from precheck.checkpoint.torch_dtypes import dtype_name
from precheck.checkpoint.weights import Weights
from precheck.errors import UnsupportedModelError
from precheck.measure.models.model_dtypes import main_dtype
from precheck.measure.models.settings import setting, text_config
from precheck.measure.subject.clamps import clamps
from precheck.measure.subject.footprint import attention_facts, cache_size, widths
from precheck.records.report import ModelFacts

if TYPE_CHECKING:
    from precheck.checkpoint.architecture import Architecture

Subject = Checkpoint | nn.Module


def subject_name(subject: Subject) -> str:
    """What the user called it; a live module by its class."""
    return subject.id if isinstance(subject, Checkpoint) else type(subject).__name__


def model_facts(
    subject: Subject,
    *,
    model: nn.Module,
    layout: Architecture,
    sizes: dict[str, int],
    default_attention: str,
) -> ModelFacts:
    """The report's block on the model."""
    config = getattr(model, "config", None)
    return ModelFacts(
        id=subject_name(subject),
        revision=subject.revision if isinstance(subject, Checkpoint) else None,
        architecture=type(model).__name__,
        model_type=getattr(config, "model_type", "") or type(model).__name__,
        decoder_layers=layout.decoder_layers,
        num_decoder_layers=layout.num_decoder_layers,
        num_parameters=sum(each.numel() for each in model.parameters()),
        declared_dtype=declared_dtype(subject),
        tensor_dtypes=sizes,
        default_attn_implementation=default_attention,
        max_context=max_context(model),
        quantization=_quantization(subject),
        attention=attention_facts(model, layout),
        cache=cache_size(model),
        widths=widths(model),
        clamps=clamps(model),
    )


def _quantization(subject: Subject) -> dict[str, Any] | None:
    """The settings of the config, plain values alone, and who decoded it."""
    if not isinstance(subject, Checkpoint) or subject.quantization is None:
        return None
    found = subject.quantization
    plain = {
        name: value
        for name, value in found.settings.items()
        if value is None or isinstance(value, str | int | float | bool)
    }
    decoder = "precheck" if found.is_decoded_here else DECODED_BY_TRANSFORMERS[found.method]
    return {
        **plain,
        "quant_method": found.method,
        "decoded_by": decoder,
        "num_linears_without_bias": _num_without_bias(subject),
    }


def _num_without_bias(checkpoint: Checkpoint) -> int:
    """Packed linears that no bias is stored for."""
    with Weights(checkpoint.weight_files) as stored:
        linears = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
        return sum(f"{name}.bias" not in stored for name in linears)


def stored_bytes(subject: Subject) -> int:
    """Bytes of the files its weights lie in; 0 of a live module."""
    if not isinstance(subject, Checkpoint):
        return 0
    return sum(file.stat().st_size for file in subject.weight_files)


def tensor_sizes(subject: Subject) -> dict[str, int]:
    """Elements by dtype name, without reading any."""
    if isinstance(subject, Checkpoint):
        with Weights(subject.weight_files) as weights:
            return tensor_dtypes(weights)
    sizes: dict[str, int] = {}
    for parameter in subject.parameters():
        name = dtype_name(parameter.dtype)
        sizes[name] = sizes.get(name, 0) + parameter.numel()
    return sizes


def declared_dtype(subject: Subject) -> str | None:
    """What the config, or a live module's own parameters, say it runs in."""
    if isinstance(subject, nn.Module):
        return dtype_name(main_dtype(subject))
    declared = getattr(subject.config, "dtype", None)
    return None if declared is None else dtype_name(declared)


def vocab_size(model: nn.Module) -> int:
    """Rows of the input embedding.

    Raises:
        UnsupportedModelError: the model takes and makes no token ids.
    """
    embedding = token_embedding(model)
    if not isinstance(embedding, nn.Embedding):
        embedding = next((each for each in model.modules() if isinstance(each, nn.Embedding)), None)
    takes = getattr(model, "main_input_name", "input_ids")
    is_written = takes == "input_ids" or bool(
        getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    )
    if not is_written or embedding is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes {takes}, not token ids",
            hint="models of images or sound that write no text are not scanned",
        )
    return int(embedding.weight.shape[0])


def max_context(model: nn.Module) -> int | None:
    """The longest input that the model allows; None where its config does not say."""
    text = text_config(model)
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        found = setting(text, name)
        if isinstance(found, int) and found > 0:
            return found - _unused_positions(model, found)
    return None


def _unused_positions(model: nn.Module, num_positions: int) -> int:
    """SegmentRole embeddings that count from behind a padding index (RoBERTa) lose those before."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == num_positions:
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def decoder_start(model: nn.Module) -> int:
    """The token id a decoder of an encoder-decoder model begins with."""
    for holder in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            found = getattr(holder, name, None)
            if isinstance(found, int):
                return found
    return 0
