"""Mixtures of experts whose routers cannot decide: rounding sends tokens to other experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tests.tiny_models import tiny

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def undecided(name: str, *, layers: tuple[int, ...], tie: float) -> PreTrainedModel:
    """The healthy mixture with nearly tied router logits in these layers.

    The rows of a tied router are one vector, plus ``tie`` times vectors of that size.
    """
    model = tiny(name)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for index in layers:
            router = parameters[f"model.layers.{index}.mlp.gate.weight"]
            generator = torch.Generator().manual_seed(index + 1)
            size = router.shape[1] ** -0.5
            common = torch.randn(router.shape[1], generator=generator)
            own = torch.randn(router.shape, generator=generator)
            router.copy_(size * (common + tie * own))
    return model
