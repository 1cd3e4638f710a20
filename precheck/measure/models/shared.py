"""The models of all configurations, which share the parameters of each dtype.

Skeletons of one dtype share their parameters, whatever their attention implementation, so that six
configurations hold three copies. Every model is made by transformers itself, with ``dtype=``: only
that respects the modules an architecture keeps in float32, and it is what a user will run.
In ``resident.py`` all weights are in memory; in ``streamed.py`` they are read when a run needs
them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import nn

from precheck.checkpoint.architecture import Architecture, find_architecture
from precheck.measure.machine.arithmetic import arithmetic_of
from precheck.measure.models.attention import (
    attention_of,
    can_switch_attention,
    plain_attention,
    switch_attention,
)
from precheck.measure.models.matching import Loading
from precheck.measure.models.presence import Presence, ResidentPresence
from precheck.measure.models.skeleton import Skeleton, nonfinite_parameters, twin
from precheck.measure.models.split_head import split_head
from precheck.measure.watch.parameters import Parameters
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from precheck.records.stored import CheckpointAudit

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.records.attention import Attention


class SharedModels(ABC):
    """One model for each dtype; those of other attention implementations share its parameters."""

    def __init__(self, *, device: str, attention: Attention | None) -> None:
        self.loading = Loading()
        self._attention = attention
        self._device = device
        self._models: dict[Dtype, nn.Module] = {}
        self._nonfinite: dict[Dtype, dict[str, int]] = {}
        """For each dtype, ids of parameters that are not finite, by name."""

    def default_attention(self) -> str:
        """The attention implementation that a plain load uses: the config's, else the class's."""
        return plain_attention(self._model(Dtype.FLOAT32), self._attention)

    def class_attention(self) -> str:
        """The attention implementation that the class chooses where nothing names one."""
        return attention_of(self._model(Dtype.FLOAT32))

    def skeleton(self, dtype: Dtype, attn_implementation: str) -> Skeleton:
        """The model of one configuration, over the weights of its dtype.

        Raises:
            UnsupportedConfigurationError: the model does not have this attention implementation.
        """
        model = self._model(dtype)
        used = attention_of(model)
        if attn_implementation != used:
            if can_switch_attention(model):
                model = twin(model)
                used = switch_attention(model, attn_implementation)
            else:
                model = self._rebuild(dtype, attn_implementation)
                used = attention_of(model)
        return Skeleton(
            model=model,
            configuration=Configuration(dtype=dtype, attn_implementation=used),
            requested_attn_implementation=attn_implementation,
            arithmetic=arithmetic_of(dtype, self._device),
            parameters=Parameters.of(model, faulty=self._faulty_parameters(dtype)),
        )

    def presence(self, _skeleton: Skeleton) -> Presence:
        """Keeps the parameters of one skeleton in memory while they are used, from now on."""
        return ResidentPresence()

    @property
    def rounded_buffers(self) -> tuple[str, ...]:
        """Buffers of a live module that a cast of the whole module rounded to 16 bits."""
        return ()

    @property
    def bytes_read(self) -> int:
        """Bytes of stored weights read so far; 0 where they are in memory."""
        return 0

    def plan_memory(self, layout: Architecture, *, limit: int, used: int) -> str:
        """Decides what is in memory at once, after the model of every dtype was made.

        Args:
            layout: the model's units.
            limit: bytes that the scan may take on its device.
            used: bytes that it takes besides weights.

        Returns:
            The decision in words.

        Raises:
            MemoryExhaustedError: even the smallest parts do not fit.
        """
        del layout, limit, used
        return "all weights in memory"

    def vector(self, name: str) -> Tensor | None:
        """A parameter of one dimension as it is stored, on the CPU; None if there is none.

        Of a checkpoint that is streamed, only one that was read, and after it was.
        """
        parameter = dict(self._model(Dtype.FLOAT32).named_parameters()).get(name)
        return None if parameter is None or parameter.is_meta else parameter.detach().cpu()

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """The audit of the stored tensors; after a scan that broke off, of those that were read."""
        del is_complete
        return CheckpointAudit()

    def close(self) -> None:
        """Forgets the models."""
        self._models.clear()

    def _model(self, dtype: Dtype) -> nn.Module:
        if dtype not in self._models:
            if not dtype.is_reference:
                self._model(Dtype.FLOAT32)
            model = self._make(dtype)
            if not dtype.is_reference:
                _copy_initialised(model, self._models[Dtype.FLOAT32], self.loading)
            split_heads(model)
            self._models[dtype] = model
            self._nonfinite[dtype] = nonfinite_parameters(model)
        return self._models[dtype]

    def _faulty_parameters(self, dtype: Dtype) -> set[int]:
        """Ids of parameters that are not finite in ``dtype`` although they are in float32.

        In float32, ids of those that are not finite.
        """
        nonfinite = self._nonfinite[dtype]
        if dtype.is_reference:
            return set(nonfinite.values())
        reference = self._nonfinite.get(Dtype.FLOAT32, {})
        return {identity for name, identity in nonfinite.items() if name not in reference}

    @abstractmethod
    def _make(self, dtype: Dtype) -> nn.Module:
        """The model in a dtype, with its class's attention; the float32 one comes first."""

    @abstractmethod
    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        """A model that cannot change its attention, made with another one."""


def _copy_initialised(model: nn.Module, reference: nn.Module, loading: Loading) -> None:
    """Gives newly initialised parameters the reference's values: the dtype is all that differs."""
    initialised = set(loading.missing) | set(loading.mismatched)
    reference_parameters = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_initialised = name in initialised and not parameter.is_meta
            if is_initialised and name in reference_parameters:
                parameter.copy_(reference_parameters[name])


def split_heads(model: nn.Module) -> None:
    """Makes large heads compute their scores a part of the vocabulary at a time."""
    for unit in find_architecture(model).units:
        if not unit.is_block:
            split_head(model, unit.name)


def share_parameters(model: nn.Module, owner: nn.Module) -> None:
    """Points every parameter of ``model`` at the owner's of the same name."""
    for name, module in model.named_modules():
        for key in module._parameters:  # noqa: SLF001  setattr would copy the registration order
            if module._parameters[key] is not None:  # noqa: SLF001
                full_name = f"{name}.{key}" if name else key
                module._parameters[key] = owner.get_parameter(full_name)  # noqa: SLF001
