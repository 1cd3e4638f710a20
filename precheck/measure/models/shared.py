"""Which weights are in memory when: the seam where they come and go, and all of them at once.

Skeletons of one dtype share their parameters, whatever their attention implementation, so that six
configurations hold three copies. Every model is made by transformers itself, with ``dtype=``: only
that respects the modules an architecture keeps in float32, and it is what a user will run.
``measure/models/streamed.py`` has the weights that are read when they are needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import psutil
import torch
from torch import nn

from precheck.checkpoint.architecture import Architecture, find_architecture
from precheck.checkpoint.audit import audit_weights
from precheck.errors import (
    MemoryExhaustedError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
)
from precheck.measure.models.loading import (
    Loading,
    count_parameters,
    kept_in_float32,
    load_model,
    main_dtype,
)
from precheck.measure.models.skeleton import (
    Skeleton,
    attention_of,
    can_switch_attention,
    first_line,
    nonfinite_parameters,
    switch_attention,
    twin,
)
from precheck.measure.models.split_head import split_head
from precheck.measure.watch.rounded_products import arithmetic_of
from precheck.records.precision import Dtype
from precheck.records.quantities import num_bytes
from precheck.records.report import CheckpointAudit

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.checkpoint.source import Checkpoint


class Presence(Protocol):
    """Sees to it that a model's parameters are there while a module runs."""

    stands: tuple[str, ...]
    """Modules inside units at which all runs wait for each other: parameters change there."""

    def enter(
        self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a module; what it is to be called with, or None for what it is given."""

    def leave(self, module: str, output: Any) -> None:
        """After a module, with what it returned."""


class AlwaysThere:
    """The presence of parameters that stay in memory."""

    stands: tuple[str, ...] = ()

    def enter(self, _module: str, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        """Nothing to do."""

    def leave(self, _module: str, _output: Any) -> None:
        """Nothing to do."""


class SharedModels(ABC):
    """One model for each dtype; those of other attention implementations share its parameters."""

    def __init__(self, *, device: str) -> None:
        self.loading = Loading()
        self._device = device
        self._models: dict[Dtype, nn.Module] = {}
        self._faults: dict[Dtype, dict[str, int]] = {}

    def default_attention(self) -> str:
        """What the model uses when nothing is asked for."""
        return attention_of(self._model(Dtype.FLOAT32))

    def skeleton(self, dtype: Dtype, attn_implementation: str) -> Skeleton:
        """The model of one configuration, over the weights of its dtype.

        Raises:
            UnsupportedConfigurationError: the model does not have this attention implementation.
        """
        model = self._model(dtype)
        if attn_implementation != attention_of(model):
            if can_switch_attention(model):
                model = twin(model)
                switch_attention(model, attn_implementation)
            else:
                model = self._rebuild(dtype, attn_implementation)
        return Skeleton(
            model=model,
            dtype=dtype,
            attn_implementation=attention_of(model),
            requested_attn_implementation=attn_implementation,
            arithmetic=arithmetic_of(dtype, self._device),
            weight_faults=faults(self._faults, dtype),
        )

    def presence(self, _skeleton: Skeleton) -> Presence:
        """What sees to the parameters of one skeleton, from now on."""
        return AlwaysThere()

    @property
    def bytes_read(self) -> int:
        """Bytes of stored weights read so far; 0 where they are in memory."""
        return 0

    def settle(self, layout: Architecture, *, limit: int, used: int) -> str:
        """Decides what is in memory at once, when the model of every dtype is made; says so.

        Args:
            layout: the model's units.
            limit: bytes that the scan may take on its device.
            used: bytes of it that are no weights.

        Raises:
            MemoryExhaustedError: the least that can be done does not fit.
        """
        del layout, limit, used
        return "all weights in memory"

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """What is stored; after a scan that broke off, what is known of it."""
        del is_complete
        return CheckpointAudit()

    def close(self) -> None:
        """Forgets the models."""
        self._models.clear()

    def _model(self, dtype: Dtype) -> nn.Module:
        if dtype not in self._models:
            if dtype is not Dtype.FLOAT32:
                self._model(Dtype.FLOAT32)
            model = self._make(dtype)
            if dtype is not Dtype.FLOAT32:
                _copy_initialised(model, self._models[Dtype.FLOAT32], self.loading)
            _split_heads(model)
            self._models[dtype] = model
            self._faults[dtype] = nonfinite_parameters(model)
        return self._models[dtype]

    @abstractmethod
    def _make(self, dtype: Dtype) -> nn.Module:
        """The model in a dtype, with its default attention; the float32 one comes first."""

    @abstractmethod
    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        """A model that cannot change its attention, made with another one."""


class ResidentWeights(SharedModels):
    """Models of a checkpoint, loaded by ``from_pretrained(dtype=...)``."""

    def __init__(self, checkpoint: Checkpoint, *, device: str) -> None:
        super().__init__(device=device)
        self._checkpoint = checkpoint
        self._num_parameters = count_parameters(checkpoint)

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """What is stored; read once more for it."""
        del is_complete
        with self._checkpoint.open_weights() as stored:
            return audit_weights(stored)

    def _make(self, dtype: Dtype) -> nn.Module:
        self._require_memory(dtype)
        model, loading = load_model(self._checkpoint, dtype)
        if dtype is Dtype.FLOAT32:
            self.loading = loading
        placed: nn.Module = model.to(self._device)
        return placed

    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        model, _ = load_model(self._checkpoint, dtype, attn_implementation=attn_implementation)
        _split_heads(model)
        share_parameters(model, self._model(dtype))
        return model.to(self._device)

    def _require_memory(self, dtype: Dtype) -> None:
        if self._device != "cpu":
            return  # the device's own allocator says what it lacks
        wanted = self._num_parameters * dtype.limits.num_bytes
        available = psutil.virtual_memory().available
        if wanted > available:
            raise MemoryExhaustedError(
                f"not enough memory for the weights in {dtype}: {num_bytes(wanted)} "
                f"(available {num_bytes(available)})",
                hint="leave --resident out: weights are then read when they are needed",
            )


class LiveWeights(SharedModels):
    """Models made from a live module, which stays as it is.

    In its own dtype the module is taken parameter by parameter as it stands. For another dtype
    those parameters are cast that have the module's main dtype; of a float32 module, those its
    class keeps in float32 stay.
    """

    def __init__(self, module: nn.Module, *, device: str) -> None:
        super().__init__(device=device)
        self._module = module
        self._main = main_dtype(module)

    def _rebuild(self, _dtype: Dtype, _attn_implementation: str) -> nn.Module:
        raise UnsupportedConfigurationError(
            f"{type(self._module).__name__} cannot change its attention implementation when live"
        )

    def _make(self, dtype: Dtype) -> nn.Module:
        wanted = getattr(torch, dtype)
        kept = kept_in_float32(self._module, dtype) if self._main is torch.float32 else frozenset()
        replacements: dict[int, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            is_main = parameter.dtype is self._main and name not in kept
            widens = dtype is Dtype.FLOAT32 and parameter.is_floating_point()
            target = wanted if is_main or widens else parameter.dtype
            cast = parameter.detach().to(device=self._device, dtype=target)
            replacements[id(parameter)] = nn.Parameter(cast, requires_grad=parameter.requires_grad)
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


def faults(found: dict[Dtype, dict[str, int]], dtype: Dtype) -> set[int]:
    """Ids of parameters of ``dtype`` that are not finite and, but for float32 itself, are there."""
    known = found.get(Dtype.FLOAT32, {})
    return {
        identity
        for name, identity in found[dtype].items()
        if dtype is Dtype.FLOAT32 or name not in known
    }


def _copy_initialised(model: nn.Module, reference: nn.Module, loading: Loading) -> None:
    """Gives newly initialised parameters the reference's values: the dtype is all that differs."""
    initialised = set(loading.missing) | set(loading.mismatched)
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in initialised and name in theirs and not parameter.is_meta:
                parameter.copy_(theirs[name])


def _split_heads(model: nn.Module) -> None:
    for unit in find_architecture(model).units:
        if not unit.is_block:
            split_head(model, unit.name)


def share_parameters(model: nn.Module, owner: nn.Module) -> None:
    """Points every parameter of ``model`` at the owner's of the same name."""
    for name, module in model.named_modules():
        for key in module._parameters:  # noqa: SLF001  setattr would copy the registration order
            full = f"{name}.{key}" if name else key
            if module._parameters[key] is not None:  # noqa: SLF001
                module._parameters[key] = owner.get_parameter(full)  # noqa: SLF001
