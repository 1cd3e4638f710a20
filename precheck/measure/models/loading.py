"""Loading a checkpoint as a user will: transformers' own ``from_pretrained(dtype=...)``."""

from __future__ import annotations

import re
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

from precheck.errors import (
    CheckpointCorruptError,
    PrecheckError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
)
from precheck.measure.machine.memory import is_out_of_memory, memory_error
from precheck.measure.models.bounds import bounded_by_its_files
from precheck.measure.models.skeleton import first_line
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from precheck.checkpoint.quantization import Quantization
    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights

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
        with _building(checkpoint):
            model, found = _loaded(
                loader,
                checkpoint,
                dtype=getattr(torch, dtype),
                attn_implementation=attn_implementation,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise _translated(error, attn_implementation, loader) from error
    return model, _loading(found)


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
    kept = kept_in_float32(model, Dtype(str(dtype).removeprefix("torch.")))
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


def empty_model(
    checkpoint: Checkpoint,
    stored: Weights,
    dtype: Dtype,
    *,
    attn_implementation: str | None = None,
) -> tuple[nn.Module, Loading]:
    """The model in one dtype without the weights, and what is missing: what is stored is ``meta``.

    It is what ``from_pretrained`` makes of stand-ins for the stored tensors: modules, names,
    dtypes (those kept in float32 too), ties, buffers, and values for what the checkpoint lacks.
    Buffers that are stored stay ``meta`` too.

    Raises:
        CheckpointError: it does not load.
        UnsupportedConfigurationError: the model does not have this attention implementation.
    """
    loader = model_class(checkpoint.config)
    try:
        if not issubclass(loader, PreTrainedModel):
            loader = type(_on_meta(loader, checkpoint))
        with _building(checkpoint):
            model, found = loader.from_pretrained(
                None,
                config=checkpoint.config,
                state_dict={name: _StandIn(stored, name) for name in stored},
                dtype=getattr(torch, dtype),
                attn_implementation=attn_implementation,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
            if (checkpoint.folder / GENERATION_CONFIG_NAME).is_file():
                model.generation_config = GenerationConfig.from_pretrained(checkpoint.folder)
    except Exception as error:
        raise _translated(error, attn_implementation, loader) from error
    return model, _loading(found)


@contextmanager
def _building(checkpoint: Checkpoint) -> Iterator[None]:
    """What a checkpoint lacks is drawn at random; the caller's generator stays where it is."""
    devices = range(torch.cuda.device_count())
    with (
        quiet_transformers(),
        bounded_by_its_files(checkpoint),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(SEED)
        yield


class _StandIn:
    """A stored tensor as transformers' loader takes it: indexed to be read, then moved and cast."""

    def __init__(self, stored: Weights, name: str) -> None:
        self.shape = stored.shape(name)
        self.dtype: torch.dtype = getattr(torch, stored.dtype(name))

    def __getitem__(self, _: object) -> _StandIn:
        return self

    def to(self, device: object = None, dtype: torch.dtype | None = None) -> Tensor:
        """Its shape in ``dtype``, and no memory, whatever the device."""
        del device
        return torch.empty(self.shape, dtype=dtype or self.dtype, device="meta")


def _on_meta(loader: Any, checkpoint: Checkpoint) -> nn.Module:
    with quiet_transformers(), bounded_by_its_files(checkpoint), torch.device("meta"):
        model: nn.Module
        if issubclass(loader, PreTrainedModel):
            model = loader._from_config(checkpoint.config)  # noqa: SLF001  its only spelling
        else:
            model = loader.from_config(
                checkpoint.config, trust_remote_code=checkpoint.trust_remote_code
            )
    return model


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


def bare_model(checkpoint: Checkpoint) -> nn.Module:
    """The model that a checkpoint's config describes, without memory for its parameters.

    Raises:
        CheckpointError: the model class does not take this config.
    """
    loader = model_class(checkpoint.config)
    try:
        return _on_meta(loader, checkpoint)
    except Exception as error:
        raise _translated(error, None, loader) from error


def count_parameters(checkpoint: Checkpoint) -> int:
    """Parameters of the model that a checkpoint's config describes.

    Raises:
        CheckpointError: the model class does not take this config.
    """
    model = bare_model(checkpoint)
    return sum(parameter.numel() for parameter in model.parameters())


def main_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of most of the module's floating-point parameters.

    Raises:
        UnsupportedModelError: it has none.
    """
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    if not sizes:
        raise UnsupportedModelError(f"no floating-point parameters in {type(module).__name__}")
    return max(sizes, key=sizes.__getitem__)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' log and progress bars: precheck reports what loading found."""
    log = transformers.utils.logging
    verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bars:
            log.enable_progress_bar()


def _translated(error: Exception, attn_implementation: str | None, loader: type) -> Exception:
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


def _loading(found: dict[str, Any]) -> Loading:
    mismatched = sorted(str(each[0]) for each in found.get("mismatched_keys", ()))
    return Loading(
        missing=tuple(sorted(set(found.get("missing_keys", ())) - set(mismatched))),
        unexpected=tuple(sorted(found.get("unexpected_keys", ()))),
        mismatched=tuple(mismatched),
    )


def kept_in_float32(module: nn.Module, dtype: Dtype) -> frozenset[str]:
    """Parameters that ``from_pretrained(dtype=...)`` would leave in float32."""
    if not isinstance(module, PreTrainedModel) or dtype is Dtype.FLOAT32:
        return frozenset()
    patterns = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is Dtype.FLOAT16:
        patterns |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if not patterns:
        return frozenset()
    wanted = re.compile("|".join(rf"(^|\.){each}($|\.)" for each in patterns))
    return frozenset(name for name, _ in module.named_parameters() if wanted.search(name))


def kept_modules(model: nn.Module) -> dict[str, int]:
    """Modules with floating-point parameters in float32 inside a 16-bit model, and how many."""
    kept: dict[str, int] = {}
    if main_dtype(model) is torch.float32:
        return kept
    for name, parameter in model.named_parameters():
        if parameter.dtype is torch.float32:
            module = name.rpartition(".")[0]
            kept[module] = kept.get(module, 0) + parameter.numel()
    return dict(sorted(kept.items()))
