"""Hadamard rotations, which spread an outlier over a whole vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.facts.formats import Rotation

if TYPE_CHECKING:
    from torch import Tensor

_NARROWEST = 64


def width_of(rotation: Rotation | None, head_dim: int) -> int | None:
    """How many numbers are rotated together; None where llama.cpp rotates none.

    >>> width_of(Rotation.HADAMARD_WIDEST, 192), width_of(Rotation.HADAMARD_64, 80)
    (64, None)
    """
    if rotation is None or head_dim % _NARROWEST:
        return None
    return _NARROWEST if rotation is Rotation.HADAMARD_64 else head_dim & -head_dim


def rotated(tensor: Tensor, width: int) -> Tensor:
    """The product with a Hadamard matrix of length 1 in every row; it is its own inverse.

    Sums are made in pairs, so that a slice comes out as it does in the whole tensor.

    Args:
        tensor: in float32; ``width`` divides its last dimension.
        width: a power of two.
    """
    vectors = tensor.reshape(*tensor.shape[:-1], tensor.shape[-1] // width, width)
    half = 1
    while half < width:
        pairs = vectors.reshape(*vectors.shape[:-1], width // (2 * half), 2, half)
        first, second = pairs.unbind(-2)
        vectors = torch.stack((first + second, first - second), dim=-2).reshape(vectors.shape)
        half *= 2
    return vectors.mul_(width**-0.5).reshape(tensor.shape)
