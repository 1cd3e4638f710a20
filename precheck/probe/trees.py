"""Tensors inside nested tuples, lists and dicts: what modules take and return."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for each in tree:
            yield from tensors_in(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from tensors_in(each)


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, lists and dicts with every tensor changed; other objects as they are."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: mapped(each, change) for key, each in tree.items()}
    if type(tree) in {tuple, list}:
        return type(tree)(mapped(each, change) for each in tree)
    return tree


def copied(tree: Any) -> Any:
    """The same with every tensor cloned, and caches that can be written to without the original."""
    if isinstance(tree, Cache):
        return _copied_cache(tree)
    if isinstance(tree, dict):
        return {key: copied(each) for key, each in tree.items()}
    if type(tree) in {tuple, list}:
        return type(tree)(copied(each) for each in tree)
    return mapped(tree, lambda each: each.detach().clone())


def _copied_cache(cache: Cache) -> Cache:
    """A cache that can be filled without the original noticing.

    Some models pass one on although none was asked for, and a unit that is called again must find
    it as it was. Keys and values of a dynamic layer are never written in place, so they are shared;
    what other layers keep is small.
    """
    twin = copy.copy(cache)
    for name, value in vars(cache).items():
        if isinstance(value, Cache):
            setattr(twin, name, _copied_cache(value))
        elif isinstance(value, list):
            layers = [
                copy.copy(each) if isinstance(each, DynamicLayer) else copy.deepcopy(each)
                for each in value
            ]
            setattr(twin, name, layers)
        elif isinstance(value, dict):
            setattr(twin, name, dict(value))
    return twin
