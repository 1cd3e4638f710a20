"""The report's block on the model: what config, class and headers say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.measure.models.quantized import num_stored
from precheck.measure.subject.clamps import clamps
from precheck.measure.subject.footprint import attention_facts, cache_size, widths
from precheck.measure.subject.pooling import read_embedding
from precheck.measure.subject.token_inputs import can_generate, max_context
from precheck.records.answers import Embedding
from precheck.records.plain import within_bounds
from precheck.records.report import ModelFacts

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.subject.subject import Subject
    from precheck.records.sizes import Widths


def model_facts(
    subject: Subject, *, model: nn.Module, layout: Architecture, default_attention: str
) -> ModelFacts:
    """What is known of a model before it runs.

    Args:
        subject: what is scanned.
        model: the subject's model, in any dtype, with or without weights.
        layout: the model's units.
        default_attention: what the model uses by default.
    """
    config = getattr(model, "config", None)
    generates = can_generate(model)
    return ModelFacts(
        id=subject.name,
        revision=subject.revision,
        architecture=type(model).__name__,
        model_type=getattr(config, "model_type", "") or type(model).__name__,
        decoder_layers=layout.decoder_layers,
        num_decoder_layers=layout.num_decoder_layers,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        declared_dtype=subject.declared_dtype,
        tensor_dtypes=subject.tensor_dtypes,
        default_attn_implementation=default_attention,
        max_context=max_context(model),
        quantization=within_bounds(subject.quantization),
        attention=attention_facts(model, layout),
        cache=cache_size(model, layout),
        widths=_widths(model, layout),
        generates=generates,
        embedding=None if generates else _embedding(subject),
        clamps=clamps(model),
    )


def _widths(model: nn.Module, layout: Architecture) -> Widths | None:
    found = widths(model)
    return None if found is None else replace(found, layer_weights=num_stored(model, layout))


def _embedding(subject: Subject) -> Embedding:
    checkpoint = subject.checkpoint
    if checkpoint is None or checkpoint.gguf is not None:
        return Embedding()
    return read_embedding(checkpoint.folder)
