"""Rows of a tensor that are built alike: an image has the same forms for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.bounds.forms import Image


def at(image: Image, place: int) -> Image:
    """One row of an image whose parts are ``(rows, elements)``."""
    return image.moved(lambda tensor: tensor[place])


def flattened(image: Image, dim: int) -> Image:
    """The parts as ``(vectors, elements)``, the elements along ``dim``."""
    return image.moved(lambda tensor: as_vectors(tensor, dim))


def as_vectors(tensor: Tensor, dim: int) -> Tensor:
    """``(vectors, elements)``, the elements along ``dim``."""
    return tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim])


def groups_of(token: Tensor) -> Tensor:
    """Of each vector ``(vectors, elements)``: which elements are of one token, counted from 0.

    The number of a group is the place of its first element, so that vectors compare.
    """
    if bool((token == token[:, :1]).all()):
        return torch.zeros_like(token)
    _, numbers = torch.unique(token, return_inverse=True)
    count = int(numbers.max()) + 1
    firsts = torch.full((token.shape[0], count), token.shape[1], dtype=torch.int64)
    places = torch.arange(token.shape[1]).expand_as(token)
    firsts.scatter_reduce_(1, numbers, places, reduce="amin")
    return firsts.gather(1, numbers)


def classes_of(*parts: Tensor) -> tuple[list[int], Tensor]:
    """Vectors that are alike in all parts ``(vectors, elements)``.

    Returns:
        The place of the first vector of each class, and the class of each vector.
    """
    first = [part[:1] for part in parts]
    if all(bool((part == one).all()) for part, one in zip(parts, first, strict=True)):
        return [0], torch.zeros(parts[0].shape[0], dtype=torch.int64)
    joined = torch.cat([part.to(torch.float64) for part in parts], 1)
    _, classes = torch.unique(joined, dim=0, return_inverse=True)
    count = int(classes.max()) + 1
    places = torch.full((count,), len(classes), dtype=torch.int64)
    places.scatter_reduce_(0, classes, torch.arange(len(classes)), reduce="amin")
    return places.tolist(), classes


def of_group(image: Image, groups: Tensor, group: int) -> Image:
    """The elements of one group of an image of one dimension."""
    return image.moved(lambda tensor: tensor[groups == group])
