"""What every call of transformers' ``from_pretrained`` here needs: class, seed, result, errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import (
    CheckpointCorruptError,
    PrecheckError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
    first_line,
)
from precheck.measure.machine.memory import is_out_of_memory, memory_error
from precheck.measure.models.plausible_size import bounded_by_its_files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.checkpoint.source import Checkpoint

SEED = 0
"""Seeds the parameters that a checkpoint lacks, so that two scans initialise them alike."""

_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForMaskedLM",
    "AutoModel",
)


@contextmanager
def seeded_loading(checkpoint: Checkpoint) -> Iterator[None]:
    """Loads quietly, within bounds, and initialises missing parameters from ``SEED``.

    The caller's random number generators keep their state.
    """
    devices = range(torch.cuda.device_count())
    with (
        quiet_transformers(),
        bounded_by_its_files(checkpoint),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(SEED)
        yield


def model_class(config: transformers.PreTrainedConfig) -> Any:
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


def read_generation_config(model: Any, checkpoint: Checkpoint) -> None:
    """Gives ``model`` the checkpoint's generation config, which loading a state dict skips."""
    if (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)


def load_error(error: Exception, attn_implementation: str | None, loader: type) -> Exception:
    """The error of ours that stands for what transformers raised while it loaded a model."""
    if isinstance(error, PrecheckError):
        return error
    if attn_implementation is not None and isinstance(error, ValueError | ImportError):
        return UnsupportedConfigurationError(first_line(error))
    if is_out_of_memory(error):
        return memory_error(error, doing="while loading")
    if isinstance(error, ImportError):
        return UnsupportedModelError(
            f"{loader.__name__} needs a package that is not installed: {first_line(error)}",
            hint="install it and scan again",
        )
    return CheckpointCorruptError(
        f"{loader.__name__} cannot be loaded: {type(error).__name__}: {first_line(error)}",
        hint="load it with plain transformers to see the full error",
    )
