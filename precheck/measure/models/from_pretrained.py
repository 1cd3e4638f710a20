"""What every call of transformers' ``from_pretrained`` here needs: class, seed, result, errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from precheck.checkpoint.outline.plausible_size import bounded_by
from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import (
    CheckpointCorruptError,
    PrecheckError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
    first_line,
)
from precheck.measure.machine.memory import is_out_of_memory, memory_error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.checkpoint.source import Checkpoint

SEED = 0
"""Seeds the parameters that a checkpoint lacks, so that two scans initialise them alike."""


@contextmanager
def seeded_loading(checkpoint: Checkpoint) -> Iterator[None]:
    """Loads quietly, within bounds, and initialises missing parameters from ``SEED``.

    The caller's random number generators keep their state.
    """
    devices = range(torch.cuda.device_count())
    with (
        quiet_transformers(),
        bounded_by(checkpoint.headers.size_bytes, is_packed=checkpoint.quantization is not None),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(SEED)
        yield


def read_generation_config(model: Any, checkpoint: Checkpoint) -> None:
    """Gives ``model`` the checkpoint's generation config, which loading a state dict skips."""
    if checkpoint.gguf is None and (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
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
