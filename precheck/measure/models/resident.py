"""Models whose weights are all in memory: of a checkpoint, or of a live module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch
from torch import nn

from precheck.checkpoint.checkpoint_audit import audit_weights
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import (
    MemoryExhaustedError,
    UnsupportedConfigurationError,
    UnsupportedModelError,
    first_line,
)
from precheck.measure.models.empty import count_parameters
from precheck.measure.models.loading import load_model
from precheck.measure.models.model_dtypes import kept_in_float32, main_dtype
from precheck.measure.models.shared import SharedModels, share_parameters, split_heads
from precheck.measure.models.skeleton import twin
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.checkpoint.source import Checkpoint
    from precheck.records.precision import Dtype
    from precheck.records.report import CheckpointAudit


class ResidentModels(SharedModels):
    """Models of a checkpoint, loaded by ``from_pretrained(dtype=...)``."""

    def __init__(self, checkpoint: Checkpoint, *, device: str) -> None:
        super().__init__(device=device)
        self._checkpoint = checkpoint
        self._num_parameters = count_parameters(checkpoint)

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """The audit of all stored tensors, which are read once more for it."""
        del is_complete
        with self._checkpoint.open_weights() as stored:
            return audit_weights(stored)

    def _make(self, dtype: Dtype) -> nn.Module:
        self._require_memory(dtype)
        model, loading = load_model(self._checkpoint, dtype)
        if dtype.is_reference:
            self.loading = loading
        placed: nn.Module = model.to(self._device)
        return placed

    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        model, _ = load_model(self._checkpoint, dtype, attn_implementation=attn_implementation)
        split_heads(model)
        share_parameters(model, self._model(dtype))
        return model.to(self._device)

    def _require_memory(self, dtype: Dtype) -> None:
        if self._device != "cpu":
            return  # the device's own allocator reports what it lacks
        needed = self._num_parameters * dtype.limits.num_bytes
        available = psutil.virtual_memory().available
        if needed > available:
            raise MemoryExhaustedError(
                f"not enough memory for the weights in {dtype}: {num_bytes(needed)} "
                f"(available {num_bytes(available)})",
                hint="leave --resident out: weights are then read when they are needed",
            )


class LiveModels(SharedModels):
    """Models made from a live module, which is not changed.

    In the module's own dtype every parameter is used as it is. For another dtype, parameters in
    the module's main dtype are cast; of a float32 module, those that its class keeps in float32
    stay.
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
        kept = kept_in_float32(self._module, dtype) if self._main is torch.float32 else frozenset()
        replacements: dict[int, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            is_main = parameter.dtype is self._main and name not in kept
            widens = dtype.is_reference and parameter.is_floating_point()
            target_dtype = torch_dtype(dtype) if is_main or widens else parameter.dtype
            cast = parameter.detach().to(device=self._device, dtype=target_dtype)
            replacements[id(parameter)] = nn.Parameter(cast, requires_grad=parameter.requires_grad)
        try:
            model = twin(self._module, replace=lambda parameter: replacements[id(parameter)])
        except (TypeError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"live module cannot be copied: {first_line(error)}",
                hint="save it with save_pretrained and scan the folder",
            ) from error
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and dtype.is_reference:
                    setattr(module, name, buffer.float())
        return model.to(self._device)
