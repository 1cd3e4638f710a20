"""Loading a checkpoint as a user will: transformers' own ``from_pretrained(dtype=...)``."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import (
    CompressedTensorsConfig,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils.quantization_config import Mxfp4Config

from precheck.checkpoint.quiet import quiet_transformers
from precheck.checkpoint.torch_dtypes import dtype_name, torch_dtype
from precheck.errors import (
    CheckpointCorruptError,
    PrecheckError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
    first_line,
)
from precheck.measure.machine.memory import is_out_of_memory, memory_error
from precheck.measure.models.bounds import bounded_by_its_files
from precheck.measure.models.kept import kept_in_float32
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from precheck.checkpoint.quantization import Quantization
    from precheck.checkpoint.source import Checkpoint

SEED = 0
"""Seeds what a checkpoint lacks, so that two scans initialise it alike."""

_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForImageTextToText",
    "AutoModelForMaskedLM",
    "AutoModel",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What loading found in the checkpoint, by the names the model uses."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


def load_model(
    checkpoint: Checkpoint, dtype: Dtype, *, attn_implementation: str | None = None
) -> tuple[nn.Module, Loading]:
    """The model in one dtype, and what was missing; None takes the default attention.

    Raises:
        CheckpointError: it does not load.
        MemoryExhaustedError: there is no room for it.
        UnsupportedConfigurationError: the model does not have this attention implementation.
    """
    loader = model_class(checkpoint.config)
    try:
        with drawing_what_is_missing(checkpoint):
            model, found = _loaded(
                loader,
                checkpoint,
                dtype=torch_dtype(dtype),
                attn_implementation=attn_implementation,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise load_error(error, attn_implementation, loader) from error
    return model, loading_of(found)


def _loaded(
    loader: Any, checkpoint: Checkpoint, **settings: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """What ``from_pretrained`` makes of the checkpoint, with plain weights."""
    quantization = checkpoint.quantization
    if quantization is not None and quantization.is_decoded_here:
        with checkpoint.open_weights() as stored:
            decoded = {name: stored[name] for name in stored}
            loaded = loader.from_pretrained(
                None, config=checkpoint.config, state_dict=decoded, **settings
            )
        if (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
            loaded[0].generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    else:
        loaded = loader.from_pretrained(
            checkpoint.folder,
            use_safetensors=None if checkpoint.allow_pickle else True,
            trust_remote_code=checkpoint.trust_remote_code,
            local_files_only=True,
            **({} if quantization is None else _decoding(quantization)),
            **settings,
        )
    model, found = loaded
    if quantization is not None and not quantization.is_decoded_here:
        if quantization.method == "bitsandbytes":
            decoder: Any = model
            model = decoder.dequantize(settings["dtype"])
        _cast_decoded(model, settings["dtype"])
    return model, found


def _cast_decoded(model: nn.Module, dtype: torch.dtype) -> None:
    """Some formats decode to a dtype of their own, whatever the model is loaded in."""
    kept = kept_in_float32(model, Dtype(dtype_name(dtype)))
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if name in kept else dtype)


def _decoding(quantization: Quantization) -> dict[str, Any]:
    """How transformers is told to decode while it loads."""
    match quantization.method:
        case "mxfp4":
            return {"quantization_config": Mxfp4Config(dequantize=True)}
        case "compressed-tensors":
            settings = {**quantization.settings, "run_compressed": False}
            return {"quantization_config": CompressedTensorsConfig(**settings)}
        case _:
            return {}


@contextmanager
def drawing_what_is_missing(checkpoint: Checkpoint) -> Iterator[None]:
    """What a checkpoint lacks is drawn at random; the caller's generator stays where it is."""
    devices = range(torch.cuda.device_count())
    with (
        quiet_transformers(),
        bounded_by_its_files(checkpoint),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(SEED)
        yield


def model_class(config: transformers.PreTrainedConfig) -> Any:
    """The class that the config's ``architectures`` names, else the auto class that knows it."""
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return found
    remote = getattr(config, "auto_map", None) or {}
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if name in remote or type(config) in auto._model_mapping:  # noqa: SLF001  no public look-up
            return auto
    raise UnsupportedModelError(
        f"no model class for model_type {config.model_type!r}",
        hint="update transformers, or allow the checkpoint's own code with --trust-remote-code",
    )


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
        f"{loader.__name__} does not load: {type(error).__name__}: {first_line(error)}",
        hint="load it with transformers alone to see the whole error",
    )


def loading_of(found: dict[str, Any]) -> Loading:
    """From transformers' ``output_loading_info``."""
    mismatched = sorted(str(each[0]) for each in found.get("mismatched_keys", ()))
    return Loading(
        missing=tuple(sorted(set(found.get("missing_keys", ())) - set(mismatched))),
        unexpected=tuple(sorted(found.get("unexpected_keys", ()))),
        mismatched=tuple(mismatched),
    )
