"""A checkpoint's config: read as data, checked, and only then given to transformers."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import transformers
from transformers.configuration_utils import get_configuration_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import CheckpointAccessError, CheckpointCorruptError, UnsupportedModelError
from precheck.records.attention import parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from precheck.records.attention import Attention

CONFIG = "config.json"
MOST_LAYERS = 10_000
"""Of one stack; the deepest published decoders have fewer than 200."""


def read_json_object(file: Path, *, where: str) -> dict[str, Any]:
    """The content of a JSON file of the checkpoint.

    Raises:
        CheckpointAccessError: the file is not there or may not be read.
        CheckpointCorruptError: it is not JSON, or not a JSON object.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointAccessError(
            f"cannot read {file.name!r} in {where!r} ({error.strerror})",
            hint="check that the file exists, and its permissions",
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


def read_config(folder: Path, *, where: str) -> dict[str, Any]:
    """The content of the config that transformers reads.

    That is ``config.json``, unless it names ``configuration_files``, one for each version of
    transformers: what holds for the one must hold for the other.

    Raises:
        CheckpointAccessError: it is not there or may not be read.
        CheckpointCorruptError: it is not a JSON object, or names no versions.
    """
    content = read_json_object(folder / CONFIG, where=where)
    if "configuration_files" not in content:
        return content
    try:
        name = get_configuration_file(content["configuration_files"])
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointCorruptError(
            f"{CONFIG} of {where!r} says that configuration_files is "
            f"{content['configuration_files']!r} (expected names like 'config.5.0.0.json')",
            hint="compare the file with the one on the Hub",
        ) from error
    return content if name == CONFIG else read_json_object(folder / name, where=where)


def config_digest(folder: Path) -> str | None:
    """SHA-256 of a checkpoint's config; None where it has none, as beside a GGUF file."""
    file = folder / CONFIG
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def load_config(
    folder: Path, *, content: Mapping[str, Any], trust_remote_code: bool, where: str
) -> transformers.PreTrainedConfig:
    """The config as transformers understands it.

    Args:
        folder: where the config file lies.
        content: its content, which is checked before transformers reads it.
        trust_remote_code: whether Python code of the checkpoint may run.
        where: the name of the folder in messages.

    Raises:
        UnsupportedModelError: an unknown model type, or one that needs the checkpoint's own code,
            which may not run.
        CheckpointCorruptError: values that the config class does not take.
    """
    check_config(content, trust_remote_code=trust_remote_code, where=where)
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


def check_config(content: Mapping[str, Any], *, trust_remote_code: bool, where: str) -> None:
    """Checks a config before transformers makes anything of it; see ``load_config``."""
    _check_architectures(content, where=where)
    if not trust_remote_code:
        _refuse_code(content, where=where)
    _check_attention(content, trust_remote_code=trust_remote_code, where=where)
    _refuse_endless_stacks(content, where=where)


def _check_architectures(content: Mapping[str, Any], *, where: str) -> None:
    names = content.get("architectures")
    if names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return
    raise CheckpointCorruptError(
        f"{CONFIG} of {where!r} says that architectures is {names!r} (expected a list of names)",
        hint="compare the file with the one on the Hub",
    )


def take_attention(config: transformers.PreTrainedConfig) -> Attention | None:
    """Removes the attention that a config names, and returns it; None if it names none.

    A plain ``from_pretrained`` obeys it. What is built before anything is known to run here (it
    may need a package that is not installed) is built without it.
    """
    attention = attention_named_in(config)
    config._attn_implementation = None  # noqa: SLF001  the setter reaches every sub-config
    return attention


def attention_named_in(config: transformers.PreTrainedConfig) -> Attention | None:
    """The attention of a config and of those in it, as ``attn_implementation`` takes it."""
    own: str | None = config._attn_implementation  # noqa: SLF001  its only spelling
    parts = {
        name: attention_named_in(part)
        for name in config.sub_configs
        if isinstance(part := getattr(config, name, None), transformers.PreTrainedConfig)
    }
    return own if all(part == own for part in parts.values()) else {"": own, **parts}


def _check_attention(content: Mapping[str, Any], *, trust_remote_code: bool, where: str) -> None:
    """Refuses kernels from the Hub, which are code, and whatever is not a name."""
    for key, value in content.items():
        if key in {"attn_implementation", "_attn_implementation"} and value is not None:
            for _, name in parts_of(value):
                _check_attention_name(name, trust_remote_code=trust_remote_code, where=where)
        elif isinstance(value, dict):
            _check_attention(value, trust_remote_code=trust_remote_code, where=where)


def _check_attention_name(name: object, *, trust_remote_code: bool, where: str) -> None:
    if name is not None and not isinstance(name, str):
        raise CheckpointCorruptError(
            f"{CONFIG} of {where!r} says that attn_implementation is {name!r} (expected a name)",
            hint="compare the file with the one on the Hub",
        )
    if name is not None and "/" in name and not trust_remote_code:
        raise UnsupportedModelError(
            f"custom code without permission: {CONFIG} of {where!r} names the attention kernel "
            f"{name!r}, which is code from the Hub",
            hint="read that code; if you trust it: --trust-remote-code",
        )


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
            f"{CONFIG} of {where!r} has no model_type, so it is not a transformers checkpoint",
            hint="scan a checkpoint that save_pretrained wrote",
        )
    is_known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if content.get("auto_map"):  # dir() of a library of 3,000 modules takes half a second
        own = set(dir(transformers))
        foreign = [name for name in content.get("architectures") or () if name not in own]
        if foreign or not is_known:
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
