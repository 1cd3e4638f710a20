"""Which weights are in memory when: here, all of them, once for each dtype.

The seam where weights come and go. Skeletons of one dtype share their parameters, whatever their
attention implementation, so that six configurations hold three copies. Every model is loaded by
transformers itself, with ``dtype=``: only that respects the modules an architecture keeps in
float32, and it is what a user will run.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from precheck.errors import (
    CheckpointCorruptError,
    MemoryExhaustedError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
)
from precheck.probe.skeleton import (
    Skeleton,
    attention_of,
    can_switch_attention,
    first_line,
    nonfinite_parameters,
    switch_attention,
    twin,
)
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

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


class Weights(Protocol):
    """Gives the model of each configuration."""

    loading: Loading

    def default_attention(self) -> str:
        """What the model uses when nothing is asked for."""

    def skeleton(self, dtype: Dtype, attn_implementation: str) -> Skeleton:
        """The model of one configuration.

        Raises:
            UnsupportedConfigurationError: the model does not have this attention implementation.
        """


class CheckpointWeights:
    """Models of a checkpoint, loaded by ``from_pretrained(dtype=...)``."""

    def __init__(self, checkpoint: Checkpoint, *, device: str, num_parameters: int) -> None:
        self.loading = Loading()
        self._checkpoint = checkpoint
        self._device = device
        self._num_parameters = num_parameters
        self._models: dict[Dtype, nn.Module] = {}
        self._faults: dict[Dtype, dict[str, int]] = {}

    def default_attention(self) -> str:
        """What the model uses when nothing is asked for."""
        return attention_of(self._model(Dtype.FLOAT32))

    def skeleton(self, dtype: Dtype, attn_implementation: str) -> Skeleton:
        """The model of one configuration, over the weights of its dtype."""
        model = self._model(dtype)
        if attn_implementation != attention_of(model):
            if can_switch_attention(model):
                model = twin(model)
                switch_attention(model, attn_implementation)
            else:
                model = self._load(dtype, attn_implementation=attn_implementation)
                _share(model, self._model(dtype))
        return Skeleton(
            model=model,
            dtype=dtype,
            attn_implementation=attention_of(model),
            requested_attn_implementation=attn_implementation,
            weight_faults=faults(self._faults, dtype),
        )

    def _model(self, dtype: Dtype) -> nn.Module:
        if dtype not in self._models:
            self._require_memory(dtype)
            model = self._load(dtype)
            if dtype is not Dtype.FLOAT32:
                _copy_initialised(model, self._model(Dtype.FLOAT32), self.loading)
            self._models[dtype] = model
            self._faults[dtype] = nonfinite_parameters(model)
        return self._models[dtype]

    def _require_memory(self, dtype: Dtype) -> None:
        if self._device != "cpu":
            return  # the device's own allocator says what it lacks
        wanted = self._num_parameters * dtype.limits.num_bytes
        available = psutil.virtual_memory().available
        if wanted > available:
            raise MemoryExhaustedError(
                f"not enough memory for the weights in {dtype}: {wanted / 2**30:.1f} GiB "
                f"(available {available / 2**30:.1f} GiB)",
                hint="leave dtypes out with --dtype, or scan on a machine with more memory",
            )

    def _load(self, dtype: Dtype, *, attn_implementation: str | None = None) -> nn.Module:
        checkpoint = self._checkpoint
        loader = model_class(checkpoint.config)
        torch.manual_seed(SEED)
        try:
            with quiet_transformers():
                model, found = loader.from_pretrained(
                    checkpoint.folder,
                    dtype=getattr(torch, dtype),
                    attn_implementation=attn_implementation,
                    use_safetensors=None if checkpoint.allow_pickle else True,
                    trust_remote_code=checkpoint.trust_remote_code,
                    ignore_mismatched_sizes=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except Exception as error:
            raise _translated(error, attn_implementation, loader) from error
        if dtype is Dtype.FLOAT32 and attn_implementation is None:
            self.loading = _loading(found)
        placed: nn.Module = model.to(self._device)
        return placed


class LiveWeights:
    """Models made from a live module, which stays as it is.

    In its own dtype the module is taken parameter by parameter as it stands. For another dtype
    those parameters are cast that have the module's main dtype; of a float32 module, those its
    class keeps in float32 stay.
    """

    def __init__(self, module: nn.Module, *, device: str) -> None:
        self.loading = Loading()
        self._module = module
        self._device = device
        self._main = main_dtype(module)
        self._models: dict[Dtype, nn.Module] = {}
        self._faults: dict[Dtype, dict[str, int]] = {}

    def default_attention(self) -> str:
        """What the module uses."""
        return attention_of(self._module)

    def skeleton(self, dtype: Dtype, attn_implementation: str) -> Skeleton:
        """The model of one configuration, over the weights of its dtype."""
        if dtype not in self._models:
            self._models[dtype] = self._cast(dtype)
            self._faults[dtype] = nonfinite_parameters(self._models[dtype])
        model = self._models[dtype]
        if attn_implementation != attention_of(model):
            if not can_switch_attention(model):
                raise UnsupportedConfigurationError(
                    f"{type(model).__name__} cannot change its attention implementation when live"
                )
            model = twin(model)
            switch_attention(model, attn_implementation)
        return Skeleton(
            model=model,
            dtype=dtype,
            attn_implementation=attention_of(model),
            requested_attn_implementation=attn_implementation,
            weight_faults=faults(self._faults, dtype),
        )

    def _cast(self, dtype: Dtype) -> nn.Module:
        wanted = getattr(torch, dtype)
        kept = _kept_in_float32(self._module, dtype) if self._main is torch.float32 else frozenset()
        replacements: dict[int, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            is_main = parameter.dtype is self._main and name not in kept
            widens = dtype is Dtype.FLOAT32 and parameter.is_floating_point()
            target = wanted if is_main or widens else parameter.dtype
            cast = parameter.detach().to(device=self._device, dtype=target)
            replacements[id(parameter)] = nn.Parameter(cast, requires_grad=False)
        try:
            model = twin(self._module, replace=lambda each: replacements[id(each)])
        except (TypeError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"live module cannot be copied: {first_line(error)}",
                hint="save it with save_pretrained and scan the folder",
            ) from error
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and dtype is Dtype.FLOAT32:
                    setattr(module, name, buffer.float())
        return model.to(self._device)


def faults(found: dict[Dtype, dict[str, int]], dtype: Dtype) -> frozenset[int]:
    """Ids of parameters of ``dtype`` that are not finite and, but for float32 itself, are there."""
    known = found.get(Dtype.FLOAT32, {})
    return frozenset(
        identity
        for name, identity in found[dtype].items()
        if dtype is Dtype.FLOAT32 or name not in known
    )


def model_class(config: transformers.PreTrainedConfig) -> Any:
    """The class that the config's ``architectures`` names, else the auto class that knows it."""
    for name in config.architectures or ():
        found = getattr(transformers, name, None)
        if found is not None:
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
    if attn_implementation is not None and isinstance(error, ValueError | ImportError):
        return UnsupportedConfigurationError(first_line(error))
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return MemoryExhaustedError(
            f"out of memory while loading: {first_line(error)}",
            hint="leave dtypes out with --dtype, or scan on a machine with more memory",
        )
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


def _copy_initialised(model: nn.Module, reference: nn.Module, loading: Loading) -> None:
    """Gives newly initialised parameters the reference's values: the dtype is all that differs."""
    initialised = set(loading.missing) | set(loading.mismatched)
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in initialised and name in theirs:
                parameter.copy_(theirs[name])


def _share(model: nn.Module, owner: nn.Module) -> None:
    """Points every parameter of ``model`` at the owner's of the same name."""
    for name, module in model.named_modules():
        for key in module._parameters:  # noqa: SLF001  setattr would copy the registration order
            full = f"{name}.{key}" if name else key
            if module._parameters[key] is not None:  # noqa: SLF001
                module._parameters[key] = owner.get_parameter(full)  # noqa: SLF001


def _kept_in_float32(module: nn.Module, dtype: Dtype) -> frozenset[str]:
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


def kept_modules(model: nn.Module) -> tuple[str, ...]:
    """Modules with floating-point parameters in float32 inside a 16-bit model."""
    main = main_dtype(model)
    names = {
        name.rpartition(".")[0]
        for name, parameter in model.named_parameters()
        if parameter.dtype is torch.float32 and main is not torch.float32
    }
    return tuple(sorted(names))
