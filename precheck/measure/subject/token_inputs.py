"""What a model takes as text: the number of token ids, the longest input, the first id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from precheck.checkpoint.architecture import token_embedding
from precheck.errors import UnsupportedModelError
from precheck.measure.models.settings import setting, text_config
from precheck.records.plain import LARGEST

if TYPE_CHECKING:
    from precheck.checkpoint.source import Checkpoint

MOST_EMBEDDING_BYTES = 1 << 30
"""In float32: that of a model with 152,000 tokens and 1,700 numbers for each."""


def vocab_size(model: nn.Module) -> int:
    """Rows of the input embedding, or of the first embedding where the model names none.

    Raises:
        UnsupportedModelError: the model neither takes nor writes token ids.
    """
    embedding = token_embedding(model)
    if not isinstance(embedding, nn.Embedding):
        embeddings = (module for module in model.modules() if isinstance(module, nn.Embedding))
        embedding = next(embeddings, None)
    input_name = getattr(model, "main_input_name", "input_ids")
    # an encoder-decoder model may take sound, as Whisper does, and write text
    has_text = input_name == "input_ids" or bool(
        getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    )
    if not has_text or embedding is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} takes {input_name}, not token ids",
            hint="models of images or sound that do not generate text are not scanned",
        )
    return int(embedding.weight.shape[0])


def input_embedding(checkpoint: Checkpoint | None, model: nn.Module) -> Tensor | None:
    """The values of the input embedding, ``(vocab, hidden)``; None where they are not at hand.

    A model without values has them in the checkpoint, under a name that ends alike. What is larger
    than ``MOST_EMBEDDING_BYTES`` is not read for this alone.
    """
    embedding = token_embedding(model)
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or 4 * weight.numel() > MOST_EMBEDDING_BYTES:
        return None
    if not weight.is_meta:
        return weight.detach()
    names = [name for name, parameter in model.named_parameters() if parameter is weight]
    if checkpoint is None or not names:
        return None
    ending = ".".join(names[0].split(".")[-2:])
    with checkpoint.open_weights() as stored:
        for name in stored:
            is_it = name.endswith(ending) and stored.shape(name) == tuple(weight.shape)
            if is_it and "float" in stored.dtype(name):
                return stored[name]
    return None


def max_context(model: nn.Module) -> int | None:
    """The longest input that the model allows; None where its config does not say.

    A number that no length reaches, such as 10**30, stands for no limit.
    """
    config = text_config(model)
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        length = setting(config, name)
        if isinstance(length, int) and 0 < length <= LARGEST:
            return length - _unused_positions(model, length)
    return None


def _unused_positions(model: nn.Module, num_positions: int) -> int:
    """Rows of a position table that no token gets: RoBERTa counts from its padding index on."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.num_embeddings == num_positions:
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def decoder_start(model: nn.Module) -> int:
    """The token id that a decoder begins with; 0 where no config names one."""
    for config in (getattr(model, "generation_config", None), getattr(model, "config", None)):
        for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
            token_id = getattr(config, name, None)
            if isinstance(token_id, int):
                return token_id
    return 0


def can_generate(model: nn.Module) -> bool:
    """Whether a model generates text; custom code that does not say counts as generating."""
    method = getattr(model, "can_generate", None)
    return True if method is None else bool(method())
