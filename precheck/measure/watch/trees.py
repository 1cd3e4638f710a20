"""Tensors inside nested tuples, lists, dicts and dataclasses: what modules take and return."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, dicts and dataclasses, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for member in tree:
            yield from tensors_in(member)
    elif isinstance(tree, dict):
        for member in tree.values():
            yield from tensors_in(member)
    elif _is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from tensors_in(getattr(tree, field.name, None))


def results(output: Any, inputs: list[Tensor], versions: list[int]) -> list[Tensor]:
    """The results of a module: the tensors it returned, then the inputs that it wrote into.

    Args:
        output: what it returned.
        inputs: the tensors it was called with.
        versions: :func:`versions_of` them before the call.
    """
    tensors = list(tensors_in(output))
    identities = {id(tensor) for tensor in tensors}
    for tensor, version in zip(inputs, versions, strict=True):
        if tensor._version != version and id(tensor) not in identities:  # noqa: SLF001  torch counts writes
            identities.add(id(tensor))
            tensors.append(tensor)
    return tensors


def versions_of(tensors: list[Tensor]) -> list[int]:
    """How often each was written into."""
    return [tensor._version for tensor in tensors]  # noqa: SLF001


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same containers with every tensor changed; other objects as they are."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    return _rebuilt(tree, lambda member: mapped(member, change))


def copied(tree: Any) -> Any:
    """The same with every tensor cloned, and caches copied so that the original stays as it is."""
    if isinstance(tree, Cache):
        return _copied_cache(tree)
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    return _rebuilt(tree, copied)


def _rebuilt(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same kind with every member changed; any other object as it is."""
    if isinstance(tree, dict):
        return {key: change(member) for key, member in tree.items()}
    if type(tree) in {tuple, list}:
        return type(tree)(change(member) for member in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(change, tree))
    if _is_dataclass(tree):
        twin = copy.copy(tree)
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):  # a frozen one raises on assignment
                object.__setattr__(twin, field.name, change(getattr(tree, field.name)))
        return twin
    return tree


def _copied_cache(cache: Cache) -> Cache:
    """A cache that can be filled while the original stays as it is.

    Some models pass a cache on although none was asked for, and a unit that is called again needs
    it as it was. Keys and values of a dynamic layer are never written in place, so they are shared.
    Other layers hold little and are copied.
    """
    twin = copy.copy(cache)
    for name, value in vars(cache).items():
        if isinstance(value, Cache):
            setattr(twin, name, _copied_cache(value))
        elif isinstance(value, list):
            layers = [
                copy.copy(layer) if isinstance(layer, DynamicLayer) else copy.deepcopy(layer)
                for layer in value
            ]
            setattr(twin, name, layers)
        elif isinstance(value, dict):
            setattr(twin, name, dict(value))
    return twin
