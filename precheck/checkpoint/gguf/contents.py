"""What a GGUF file describes: its config, and how each parameter of the model is made of it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from precheck.checkpoint.config import check_config
from precheck.checkpoint.gguf.header import read_header
from precheck.checkpoint.gguf.recipes import find_recipes
from precheck.checkpoint.gguf.weights import GgufWeights
from precheck.checkpoint.outline.model import model_class, on_meta
from precheck.checkpoint.outline.plausible_size import bounded_by
from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import CheckpointCorruptError, PrecheckError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from precheck.checkpoint.gguf.header import GgufHeader
    from precheck.checkpoint.gguf.recipes import Recipe


_OTHER_RULES = frozenset({"qwen35", "qwen35moe", "lfm2"})
"""Architectures that transformers loads by rules of another kind, which are not applied here.

**Source**: ``GGUF_ARCHS`` in
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/integrations/gguf/gguf_conversion_mapping.py
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufContents:
    """A GGUF file, its metadata as transformers understands them."""

    file: Path
    header: GgufHeader
    config: PreTrainedConfig
    recipes: Mapping[str, Recipe]
    """How each parameter is made, by the model's name."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether its metadata hold one."""
        return "tokenizer.ggml.tokens" in self.header.lengths

    def open_weights(self) -> GgufWeights:
        """Its tensors by the names the model takes, decoded when they are read."""
        return GgufWeights(self.file, self.header, self.recipes)


def read_contents(file: Path, *, where: str) -> GgufContents:
    """The config and the tensors' names, as ``from_pretrained(..., gguf_file=)`` makes them.

    Args:
        file: the GGUF file.
        where: what the user calls it, in messages.

    Raises:
        CheckpointCorruptError: a file that is broken, or metadata that make no model.
        UnsupportedModelError: an architecture that transformers does not load from GGUF.
    """
    header = read_header(file)
    if header.architecture in _OTHER_RULES:
        raise UnsupportedModelError(
            f"GGUF files of {header.architecture} are not decoded here: {where!r}",
            hint="scan the checkpoint it was made from: the folder or Hub id",
        )
    with _translated(where), quiet_transformers():
        settings, _ = PreTrainedConfig.get_config_dict(file.parent, gguf_file=file.name)
        check_config(settings, trust_remote_code=False, where=where)
        config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
        with bounded_by(file.stat().st_size, is_packed=True):
            model = on_meta(model_class(config), config, trust_remote_code=False)
        # as a checkpoint that was saved names it: metadata say only what kind of model it is
        config.architectures = config.architectures or [type(model).__name__]
        recipes = find_recipes(header, model, settings)
    return GgufContents(file=file, header=header, config=config, recipes=recipes)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Errors of transformers as ours: the values of the file may raise anything."""
    try:
        yield
    except PrecheckError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"transformers {transformers.__version__} cannot load {where!r}: {reason!r}"
        if isinstance(error, NotImplementedError) or "is not supported" in reason:
            raise UnsupportedModelError(
                message, hint="scan the checkpoint it was made from: the folder or Hub id"
            ) from error
        raise CheckpointCorruptError(
            message, hint="download or copy this file again, or: pip install -U transformers"
        ) from error
