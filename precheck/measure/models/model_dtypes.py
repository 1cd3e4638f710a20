"""The dtype of a model, and which of its parameters stay in float32."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from precheck.errors import UnsupportedModelError
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from torch import nn


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


def kept_in_float32(module: nn.Module, dtype: Dtype) -> frozenset[str]:
    """Names of the parameters that ``from_pretrained(dtype=...)`` would leave in float32."""
    if not isinstance(module, PreTrainedModel) or dtype.is_reference:
        return frozenset()
    patterns = set(getattr(module, "_keep_in_fp32_modules_strict", None) or ())
    if dtype is Dtype.FLOAT16:
        patterns |= set(getattr(module, "_keep_in_fp32_modules", None) or ())
    if not patterns:
        return frozenset()
    within = re.compile("|".join(rf"(^|\.){pattern}($|\.)" for pattern in patterns))
    return frozenset(name for name, _ in module.named_parameters() if within.search(name))


def kept_modules(model: nn.Module) -> dict[str, int]:
    """Modules of a 16-bit model that have parameters in float32, and how many elements each."""
    num_elements: dict[str, int] = {}
    if main_dtype(model) is torch.float32:
        return num_elements
    for name, parameter in model.named_parameters():
        if parameter.dtype is torch.float32:
            module = name.rpartition(".")[0]
            num_elements[module] = num_elements.get(module, 0) + parameter.numel()
    return dict(sorted(num_elements.items()))
