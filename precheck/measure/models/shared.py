"""Which weights are in memory when: the seam where they come and go, and all of them at once.

Skeletons of one dtype share their parameters, whatever their attention implementation, so that six
configurations hold three copies. Every model is made by transformers itself, with ``dtype=``: only
that respects the modules an architecture keeps in float32, and it is what a user will run.
``measure/models/streamed.py`` has the weights that are read when they are needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from precheck.checkpoint.architecture import Architecture, find_architecture
from precheck.measure.machine.arithmetic import arithmetic_of
from precheck.measure.models.attention import attention_of, can_switch_attention, switch_attention
from precheck.measure.models.loading import Loading
from precheck.measure.models.presence import AlwaysThere, Presence
from precheck.measure.models.skeleton import Skeleton, nonfinite_parameters, twin
from precheck.measure.models.split_head import split_head
from precheck.measure.watch.parameters import Parameters
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from precheck.records.report import CheckpointAudit


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
            configuration=Configuration(dtype=dtype, attn_implementation=attention_of(model)),
            requested_attn_implementation=attn_implementation,
            arithmetic=arithmetic_of(dtype, self._device),
            parameters=Parameters.of(model, faulty=faults(self._faults, dtype)),
        )

    def presence(self, _skeleton: Skeleton) -> Presence:
        """What sees to the parameters of one skeleton, from now on."""
        return AlwaysThere()

    @property
    def bytes_read(self) -> int:
        """Bytes of stored weights read so far; 0 where they are in memory."""
        return 0

    def plan_memory(self, layout: Architecture, *, limit: int, used: int) -> str:
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
            if not dtype.is_reference:
                self._model(Dtype.FLOAT32)
            model = self._make(dtype)
            if not dtype.is_reference:
                _copy_initialised(model, self._models[Dtype.FLOAT32], self.loading)
            split_heads(model)
            self._models[dtype] = model
            self._faults[dtype] = nonfinite_parameters(model)
        return self._models[dtype]

    @abstractmethod
    def _make(self, dtype: Dtype) -> nn.Module:
        """The model in a dtype, with its default attention; the float32 one comes first."""

    @abstractmethod
    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        """A model that cannot change its attention, made with another one."""


def faults(found: dict[Dtype, dict[str, int]], dtype: Dtype) -> set[int]:
    """Ids of parameters of ``dtype`` that are not finite and, but for float32 itself, are there."""
    known = found.get(Dtype.FLOAT32, {})
    return {
        identity
        for name, identity in found[dtype].items()
        if dtype.is_reference or name not in known
    }


def _copy_initialised(model: nn.Module, reference: nn.Module, loading: Loading) -> None:
    """Gives newly initialised parameters the reference's values: the dtype is all that differs."""
    initialised = set(loading.missing) | set(loading.mismatched)
    theirs = dict(reference.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in initialised and name in theirs and not parameter.is_meta:
                parameter.copy_(theirs[name])


def split_heads(model: nn.Module) -> None:
    """Makes large heads compute their scores a part of the vocabulary at a time."""
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
