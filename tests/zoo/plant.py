"""An overflow in the middle decoder layer of any model: a linear whose output leaves float16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from precheck.checkpoint.architecture import find_architecture
from tests.zoo.build import NotBuiltError, forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NEEDED = 250_000.0
"""What the output is to reach; float16's maximum is 65,504, and other probes give other inputs."""
_LARGEST_WEIGHT = 60_000.0
"""Else the weight itself would be the culprit."""
_LEAST = 100_000.0


def plant(model: PreTrainedModel) -> str:
    """Plants the fault; returns the module that makes it.

    The weights of the first linear that is called in the layer become large and of random signs.

    Raises:
        NotBuiltError: no linear there can be made to overflow.
    """
    layout = find_architecture(model)
    stack = f"{layout.decoder_layers}."
    blocks = [unit.name for unit in layout.blocks if unit.name.startswith(stack)]
    block = blocks[len(blocks) // 2]
    for name, given in _linears(model, block):
        module = model.get_submodule(name)
        if _made_large(module, given):
            return name
    raise NotBuiltError(f"no linear of {block} is given numbers that are large enough")


def _linears(model: PreTrainedModel, block: str) -> list[tuple[str, torch.Tensor]]:
    """Linears of a block with what they are given, in the order they are called."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if name.startswith(f"{block}.") and isinstance(module, nn.Linear | Conv1D):

            def keep(_module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
                    found.setdefault(name, args[0].detach().flatten(0, -2))

            handles.append(module.register_forward_pre_hook(keep))
    try:
        forward(model)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.items())


def _made_large(module: nn.Module, given: torch.Tensor) -> bool:
    weight: Any = module.weight
    signs = torch.where(torch.rand(weight.shape, generator=_random()) < 0.5, -1.0, 1.0)
    matrix = signs if isinstance(module, Conv1D) else signs.T
    if not given.numel() or not bool(given.isfinite().all()):
        return False
    reach = float((given.float() @ matrix).abs().max())
    size = min(_NEEDED / reach, _LARGEST_WEIGHT) if reach else 0.0
    if size * reach < _LEAST:
        return False
    with torch.no_grad():
        weight.copy_(signs * size)
    return True


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(0)
