"""What casting a live module as a whole does to it, and ``from_pretrained(dtype=...)`` does not.

``model.to(torch.bfloat16)`` rounds the buffers too that a class computes from its config, such as
rotary frequencies, and parameters that it keeps in float32. Buffers are computed again, so that the
reference does not start from the damage.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from precheck.checkpoint.quiet import quiet_transformers
from precheck.checkpoint.torch_dtypes import dtype_name
from precheck.measure.models.empty import StandIn
from precheck.measure.models.model_dtypes import kept_in_float32, main_dtype
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from torch import Tensor, nn

_HALVES = (torch.bfloat16, torch.float16)


def rounded_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that were rounded to 16 bits since they were computed: as they were, in float32.

    By name. Those whose values are others altogether are the caller's own, and left out.
    """
    if not isinstance(module, PreTrainedModel):
        return {}
    buffers = dict(module.named_buffers())
    rounded = {
        name: computed
        for name, computed in _computed_buffers(module, torch.float32).items()
        if name in buffers and _is_rounded(buffers[name], computed)
    }
    if not rounded:
        return {}
    # some classes compute a buffer in the dtype of the load, and nobody cast that one
    own = _computed_buffers(module, main_dtype(module))
    return {
        name: computed
        for name, computed in rounded.items()
        if name in own and own[name].dtype is torch.float32
    }


def rounded_parameters(module: nn.Module) -> tuple[str, ...]:
    """Parameters in 16 bits that a load in the module's dtype would have left in float32."""
    main = main_dtype(module)
    if main not in _HALVES:
        return ()
    kept = kept_in_float32(module, Dtype(dtype_name(main)))
    return tuple(
        name
        for name, parameter in module.named_parameters()
        if name in kept and parameter.dtype in _HALVES
    )


def _is_rounded(buffer: Tensor, computed: Tensor) -> bool:
    values = buffer.detach().cpu().float()
    if values.shape != computed.shape or torch.equal(values, computed):
        return False
    return any(torch.equal(values, computed.to(half).float()) for half in _HALVES)


def _computed_buffers(module: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Floating-point buffers that no checkpoint stores, as a load in a dtype computes them."""
    stored = {
        name: StandIn(tuple(tensor.shape), tensor.dtype)
        for name, tensor in module.state_dict().items()
    }
    try:
        with quiet_transformers(), torch.random.fork_rng(devices=[]):
            loaded = type(module).from_pretrained(
                None, config=deepcopy(module.config), state_dict=stored, dtype=dtype
            )
    except Exception:  # noqa: BLE001  a class that makes no second model: nothing is known
        return {}
    return {
        name: buffer
        for name, buffer in loaded.named_buffers()
        if name not in stored and buffer.is_floating_point() and not buffer.is_meta
    }
