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
from precheck.measure.models.cast_tensors import rounded_buffers, rounded_parameters
from precheck.measure.models.empty import count_parameters
from precheck.measure.models.loading import load_model
from precheck.measure.models.model_dtypes import kept_in_float32, main_dtype
from precheck.measure.models.shared import SharedModels, share_parameters, split_heads
from precheck.measure.models.skeleton import twin
from precheck.records.quantities import num_bytes
from precheck.records.stored import CheckpointAudit

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.checkpoint.source import Checkpoint
    from precheck.records.precision import Dtype


class ResidentModels(SharedModels):
    """Models of a checkpoint, loaded by ``from_pretrained(dtype=...)``."""

    def __init__(self, checkpoint: Checkpoint, *, device: str) -> None:
        super().__init__(device=device, attention=checkpoint.attention)
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
            with self._checkpoint.open_weights() as stored:
                self.loading = loading.explained(model, stored, self._checkpoint.quantization)
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
                hint="omit --resident: weights are then read when they are needed",
            )


class LiveModels(SharedModels):
    """Models made from a live module, which is not changed.

    In the module's own dtype everything is used as it is. For another dtype, parameters in the
    module's main dtype are cast, those that its class keeps in float32 widened, and buffers that a
    cast of the whole module rounded are computed again.
    """

    def __init__(self, module: nn.Module, *, device: str) -> None:
        super().__init__(device=device, attention=None)
        self._module = module
        self._main = main_dtype(module)
        self._buffers = rounded_buffers(module)

    @property
    def rounded_buffers(self) -> tuple[str, ...]:
        """Buffers that a cast of the whole module rounded to 16 bits."""
        return tuple(self._buffers)

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """What a cast of the whole module rounded; nothing of it is stored."""
        del is_complete
        return CheckpointAudit(
            rounded_buffers=self.rounded_buffers,
            rounded_parameters=rounded_parameters(self._module),
        )

    def _rebuild(self, _dtype: Dtype, _attn_implementation: str) -> nn.Module:
        raise UnsupportedConfigurationError(
            f"{type(self._module).__name__} cannot change its attention implementation once loaded"
        )

    def _make(self, dtype: Dtype) -> nn.Module:
        is_own = torch_dtype(dtype) is self._main and not dtype.is_reference
        kept = frozenset() if is_own else kept_in_float32(self._module, dtype)
        replacements: dict[int, Tensor] = {}
        for name, parameter in self._module.named_parameters():
            is_main = parameter.dtype is self._main and name not in kept
            widens = dtype.is_reference and parameter.is_floating_point()
            target_dtype = torch_dtype(dtype) if is_main or widens else parameter.dtype
            if name in kept:
                target_dtype = torch.float32
            cast = parameter.detach().to(device=self._device, dtype=target_dtype)
            replacements[id(parameter)] = nn.Parameter(cast, requires_grad=parameter.requires_grad)
        try:
            model = twin(self._module, replace=lambda parameter: replacements[id(parameter)])
        except (TypeError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"live module cannot be copied: {first_line(error)}",
                hint="save it with save_pretrained and scan the folder",
            ) from error
        if not is_own:
            self._restore_buffers(model, widens=dtype.is_reference)
        return model.to(self._device)

    def _restore_buffers(self, model: nn.Module, *, widens: bool) -> None:
        for path, module in model.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                computed = self._buffers.get(f"{path}.{name}" if path else name)
                if computed is not None:
                    setattr(module, name, computed.clone())
                elif buffer.is_floating_point() and widens:
                    setattr(module, name, buffer.float())
