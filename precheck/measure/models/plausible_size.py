"""A config that describes far more than the weight files hold is refused while its model is built.

Parameters that a checkpoint lacks are initialised and kept in memory, and a model of a million
layers takes forever to build, even without memory for its weights.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
from torch.nn.modules.module import register_module_parameter_registration_hook

from precheck.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from precheck.checkpoint.source import Checkpoint

MOST_PARAMETERS = 300_000
"""Tensors of one model. The largest mixtures of experts have about 70,000."""


@contextmanager
def bounded_by_its_files(checkpoint: Checkpoint) -> Iterator[None]:
    """Inside, building a model raises once its parameters cannot be those of the checkpoint.

    Raises:
        CheckpointCorruptError: there are too many of them, or they are too large.
    """
    size_bytes = sum(file.stat().st_size for file in checkpoint.weight_files)
    # a byte holds one element, or two of four bits; a tied head is counted twice; and parameters
    # that the files lack may take all of the memory in float32
    elements_per_byte = 2 if checkpoint.quantization is None else 8
    most_elements = elements_per_byte * size_bytes + psutil.virtual_memory().total // 4
    num_parameters = num_elements = 0

    def count(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> None:
        nonlocal num_parameters, num_elements
        num_parameters += 1
        num_elements += 0 if parameter is None else parameter.numel()
        if num_parameters > MOST_PARAMETERS or num_elements > most_elements:
            raise CheckpointCorruptError(
                f"config.json describes a model of more than {num_elements:,} parameters in "
                f"{num_parameters:,} tensors; the weight files have {size_bytes:,} bytes",
                hint="compare config.json with the one that belongs to these weights",
            )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()
