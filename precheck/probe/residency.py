"""Which weights are in memory when: here, all of them, once for each dtype.

The seam where weights come and go. Skeletons of one dtype share their parameters, whatever their
attention implementation, so that six configurations hold three copies. Every model is loaded by
transformers itself, with ``dtype=``: only that respects the modules an architecture keeps in
float32, and it is what a user will run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import psutil
import torch
from torch import nn

from precheck.errors import (
    MemoryExhaustedError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
)
from precheck.probe.loading import (
    Loading,
    count_parameters,
    kept_in_float32,
    load_model,
    main_dtype,
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
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.checkpoint.source import Checkpoint


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

    def __init__(self, checkpoint: Checkpoint, *, device: str) -> None:
        self.loading = Loading()
        self._checkpoint = checkpoint
        self._device = device
        self._num_parameters = count_parameters(checkpoint.config)
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
                f"not enough memory for the weights in {dtype}: {num_bytes(wanted)} "
                f"(available {num_bytes(available)})",
                hint="leave dtypes out with --dtype, or scan on a machine with more memory",
            )

    def _load(self, dtype: Dtype, *, attn_implementation: str | None = None) -> nn.Module:
        model, loading = load_model(
            self._checkpoint, dtype, attn_implementation=attn_implementation
        )
        if dtype is Dtype.FLOAT32 and attn_implementation is None:
            self.loading = loading
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
        kept = kept_in_float32(self._module, dtype) if self._main is torch.float32 else frozenset()
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
