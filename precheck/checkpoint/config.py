"""A checkpoint's config: read as data, checked, and only then given to transformers."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import CheckpointAccessError, CheckpointCorruptError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG = "config.json"
MOST_LAYERS = 10_000
"""Of one stack; the deepest published decoders have fewer than 200."""


def read_json_object(file: Path, *, where: str) -> dict[str, Any]:
    """The content of a JSON file of the checkpoint.

    Raises:
        CheckpointAccessError: the file is not there or may not be read.
        CheckpointCorruptError: it is no JSON, or no JSON object.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointAccessError(
            f"cannot read {file.name!r} in {where!r} ({error.strerror})",
            hint="check that the file is there and its permissions",
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointCorruptError(
            f"broken {file.name!r} in {where!r}: {error}",
            hint="download or copy this file again",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointCorruptError(
            f"broken {file.name!r} in {where!r}: a JSON {type(content).__name__} "
            "(expected an object)",
            hint="download or copy this file again",
        )
    return content


def load_config(
    folder: Path, *, content: Mapping[str, Any], trust_remote_code: bool, where: str
) -> transformers.PreTrainedConfig:
    """The config as transformers understands it.

    Args:
        folder: where the config file lies.
        content: its content, which is checked before transformers reads it.
        trust_remote_code: whether Python code of the checkpoint may run.
        where: how the folder is called in messages.

    Raises:
        UnsupportedModelError: an unknown model type, or one that needs the checkpoint's own code,
            which may not run.
        CheckpointCorruptError: values that the config class does not take.
    """
    if not trust_remote_code:
        _refuse_code(content, where=where)
    _refuse_endless_stacks(content, where=where)
    try:
        with quiet_transformers():
            config: transformers.PreTrainedConfig = transformers.AutoConfig.from_pretrained(
                folder, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # the values of the file, or its own code, may raise anything
        # The value that raised it stands on the second line.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointCorruptError(
            f"transformers {transformers.__version__} cannot use {CONFIG} of {where!r}: {reason!r}",
            hint="compare the file with the one on the Hub, or: pip install -U transformers",
        ) from error
    return config


def _refuse_endless_stacks(content: Mapping[str, Any], *, where: str) -> None:
    """Config classes make a list of that length, and models a module for each entry."""
    for name, value in content.items():
        if isinstance(value, dict):
            _refuse_endless_stacks(value, where=where)
        elif "layer" in name and isinstance(value, int | float) and value > MOST_LAYERS:
            raise CheckpointCorruptError(
                f"{CONFIG} of {where!r} says that {name} is {value!r} (expected at most "
                f"{MOST_LAYERS:,})",
                hint="compare the file with the one on the Hub",
            )


def without_quantization(config: transformers.PreTrainedConfig) -> transformers.PreTrainedConfig:
    """The config of the same model with plain weights."""
    plain = deepcopy(config)
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return plain


def _refuse_code(content: Mapping[str, Any], *, where: str) -> None:
    model_type = content.get("model_type")
    if model_type is None:
        raise UnsupportedModelError(
            f"{CONFIG} of {where!r} names no model_type, so it is no transformers checkpoint",
            hint="scan a checkpoint that save_pretrained wrote",
        )
    foreign = [name for name in _class_names(content) if name not in dir(transformers)]
    is_known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if content.get("auto_map") and (foreign or not is_known):
        raise UnsupportedModelError(
            f"custom code without permission: {where!r} needs its own Python code for "
            f"{foreign[0] if foreign else model_type!r}",
            hint="read that code; if you trust it: --trust-remote-code",
        )
    if not is_known:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} does not know the model_type "
            f"{model_type!r} of {where!r}",
            hint="pip install -U transformers",
        )


def _class_names(content: Mapping[str, Any]) -> list[str]:
    names = content.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
