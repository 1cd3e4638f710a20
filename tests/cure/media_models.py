"""Tiny models that take images or sounds, whose residual stream leaves float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers

from tests.zoo.build import small

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

HUGE = 40_000.0
"""Fits float16; twice it does not."""
_LAST = 319


class MediaModel(NamedTuple):
    """A class, and where its text model keeps what the fault is planted in."""

    class_name: str
    embedding: str
    output: str
    """What a feed-forward block writes with."""
    last_norm: str
    projector: str
    """The last parameter on the way from pixels or sounds to the text model's stream."""
    shift: float = 0.0
    """1 where norms multiply by ``1 + w``."""
    settings: tuple[tuple[str, Any], ...] = ()


_LLAMA = ("embed_tokens", "layers.1.mlp.down_proj", "norm")


def _decoder(class_name: str, prefix: str, projector: str, **more: Any) -> MediaModel:
    embedding, output, norm = (f"{prefix}.{name}.weight" for name in _LLAMA)
    shift = more.pop("shift", 0.0)
    return MediaModel(class_name, embedding, output, norm, projector, shift, tuple(more.items()))


MODELS = {
    "LLaVA": _decoder(
        "LlavaForConditionalGeneration",
        "model.language_model",
        "model.multi_modal_projector.linear_2.weight",
        image_token_index=_LAST,
    ),
    "Qwen2-VL": _decoder(
        "Qwen2VLForConditionalGeneration",
        "model.language_model",
        "model.visual.merger.mlp.2.weight",
        image_token_id=_LAST,
        video_token_id=_LAST - 1,
    ),
    "Gemma 3": _decoder(
        "Gemma3ForConditionalGeneration",
        "model.language_model",
        "model.multi_modal_projector.mm_input_projection_weight",
        shift=1.0,
        image_token_index=_LAST,
        mm_tokens_per_image=4,
    ),
    "Idefics 3": _decoder(
        "Idefics3ForConditionalGeneration",
        "model.text_model",
        "model.connector.modality_projection.proj.weight",
        image_token_id=_LAST,
    ),
}


@torch.no_grad()
def planted(name: str, folder: Path) -> Path:
    """The folder, now a checkpoint without a processor."""
    kind, model = MODELS[name], media_model(name)
    parameters = dict(model.named_parameters())
    # Gemma multiplies embeddings by the root of 64
    parameters[kind.embedding][:, 0] = HUGE / (8.0 if kind.shift else 1.0)
    parameters[kind.last_norm][0] = -kind.shift
    output = parameters[kind.output]
    output[0] *= 3.0 * HUGE / output[0].norm()
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def media_model(name: str) -> PreTrainedModel:
    """A healthy one."""
    kind = MODELS[name]
    model_class: Any = getattr(transformers, kind.class_name)
    config_class = model_class.config_class
    settings = {**small(config_class, {}), **dict(kind.settings)}
    if kind.class_name.startswith("Qwen2VL"):
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
        settings["text_config"]["rope_parameters"] = rope
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config_class(**settings))
    for parameter in model.parameters():
        if not bool(parameter.any()):  # Gemma's projector is left to the checkpoint
            parameter.normal_(std=0.1)
    return model.eval()
