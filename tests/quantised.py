"""Tiny checkpoints in the formats that people deploy, quantised here by hand and by the book.

Each writer replaces the weight of every projection by what that format stores of it, with scales
as a sound exporter gives them. ``plain_twin`` writes the same numbers as plain weights, computed
without anything of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.shell import change_config, change_weights
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

Tensors = dict[str, torch.Tensor]

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
LARGEST_INPUT = 8.0
"""What a calibration is said to have seen."""
SCHEME: dict[str, Any] = {"num_bits": 8, "type": "float", "dynamic": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "nvfp4": {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
        "ignore": ["lm_head"],
    },
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
    "modelopt-fp8": {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
    "mxfp4": {
        "quant_method": "compressed-tensors",
        "format": "mxfp4-pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
        "ignore": ["lm_head"],
    },
    "fp8": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}},
        "ignore": ["lm_head"],
    },
}


def packed(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers of at most 6 in float4, rounded to the nearest, ``(..., in / 2)`` uint8."""
    nearest = (numbers.abs().unsqueeze(-1) - E2M1).abs().argmin(-1).to(torch.uint8)
    codes = nearest | ((numbers < 0).to(torch.uint8) << 3)
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpacked(stored: torch.Tensor) -> torch.Tensor:
    """What ``packed`` made, as float32."""
    codes = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2)
    return E2M1[(codes & 7).long()] * torch.where(codes >= 8, -1.0, 1.0)


def in_nvfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed numbers, block scales in float8_e4m3fn, and the factor for all that they leave.

    A block of zeroes has the smallest scale that there is, as modelopt stores it.
    """
    of_all = weight.abs().max() / (6 * 448)
    blocks = weight.unflatten(1, (-1, 16))
    scales = (blocks.abs().amax(2) / 6 / of_all).clamp(min=2.0**-9).to(torch.float8_e4m3fn)
    numbers = blocks / (scales.float() * of_all).unsqueeze(2)
    return packed(numbers.flatten(1)), scales, of_all


def in_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed numbers and exponents, groups of 32 along the last dimension."""
    blocks = weight.unflatten(-1, (-1, 32))
    exponents = blocks.abs().amax(-1).clamp(min=2.0**-100).log2().floor() - 2
    numbers = (blocks / (2.0**exponents).unsqueeze(-1)).clamp(-6, 6)
    return packed(numbers.flatten(-2)), (exponents + 127).to(torch.uint8)


def _nvfp4(tensors: Tensors, module: str, weight: torch.Tensor) -> torch.Tensor:
    numbers, scales, of_all = in_nvfp4(weight)
    divisor = (1 / of_all).reshape(1)
    tensors[f"{module}.weight_packed"] = numbers
    tensors[f"{module}.weight_scale"] = scales
    tensors[f"{module}.weight_global_scale"] = divisor
    tensors[f"{module}.input_global_scale"] = torch.tensor([6 * 448 / LARGEST_INPUT])
    return unpacked(numbers) * (scales.float() / divisor).repeat_interleave(16, dim=1)


def _modelopt(tensors: Tensors, module: str, weight: torch.Tensor) -> torch.Tensor:
    numbers, scales, of_all = in_nvfp4(weight)
    tensors[f"{module}.weight"] = numbers
    tensors[f"{module}.weight_scale"] = scales
    tensors[f"{module}.weight_scale_2"] = of_all
    tensors[f"{module}.input_scale"] = torch.tensor(LARGEST_INPUT / (6 * 448))
    return unpacked(numbers) * (scales.float() * of_all).repeat_interleave(16, dim=1)


def _mxfp4(tensors: Tensors, module: str, weight: torch.Tensor) -> torch.Tensor:
    numbers, exponents = in_mxfp4(weight)
    tensors[f"{module}.weight_packed"] = numbers
    tensors[f"{module}.weight_scale"] = exponents
    return unpacked(numbers) * (2.0 ** (exponents.float() - 127)).repeat_interleave(32, dim=1)


def _fp8(tensors: Tensors, module: str, weight: torch.Tensor) -> torch.Tensor:
    scales = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 448
    stored = (weight / scales).to(torch.float8_e4m3fn)
    tensors[f"{module}.weight"] = stored
    tensors[f"{module}.weight_scale"] = scales
    tensors[f"{module}.input_scale"] = torch.tensor([LARGEST_INPUT / 448])
    return stored.float() * scales


def _modelopt_fp8(tensors: Tensors, module: str, weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    tensors[f"{module}.weight"] = stored
    tensors[f"{module}.weight_scale"] = scale
    tensors[f"{module}.input_scale"] = torch.tensor(LARGEST_INPUT / 448)
    return stored.float() * scale


WRITERS: dict[str, Callable[[Tensors, str, torch.Tensor], torch.Tensor]] = {
    "nvfp4": _nvfp4,
    "modelopt": _modelopt,
    "modelopt-fp8": _modelopt_fp8,
    "mxfp4": _mxfp4,
    "fp8": _fp8,
}


def _is_projection(name: str) -> bool:
    """Whether a format stores it; Mixtral's experts have w1, w2 and w3."""
    return name.endswith(("proj.weight", "w1.weight", "w2.weight", "w3.weight"))


def quantised(
    folder: Path,
    layout: str,
    change: Callable[[Tensors], None] = lambda _: None,
    *,
    model: str | PreTrainedModel = "llama",
    twin: Path | None = None,
    **settings: Any,
) -> Path:
    """A tiny model in a format, after ``change``, and its plain twin if a folder is given.

    Args:
        folder: where it is written.
        layout: a key of ``WRITERS``.
        change: what is planted in the stored tensors.
        model: as ``tiny`` calls it, or itself.
        twin: the folder for the plain one.
        settings: added to its ``quantization_config``.
    """
    decoded: Tensors = {}

    def write(tensors: Tensors) -> None:
        for name in filter(_is_projection, list(tensors)):
            weight, module = tensors.pop(name), name.removesuffix(".weight")
            decoded[name] = WRITERS[layout](tensors, module, weight)
        change(tensors)

    for each in filter(None, (folder, twin)):
        saved = tiny(model) if isinstance(model, str) else model
        save_checkpoint(saved, each, tokenizer=False)
    change_weights(folder, write)
    change_config(folder, quantization_config=CONFIGS[layout] | settings)
    if twin is not None:
        change_weights(twin, lambda tensors: tensors.update(decoded))
    return folder
