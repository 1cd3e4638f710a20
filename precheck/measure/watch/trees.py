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
        for each in tree:
            yield from tensors_in(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from tensors_in(each)
    elif _is_dataclass(tree):
        for each in dataclasses.fields(tree):
            yield from tensors_in(getattr(tree, each.name, None))


def results(output: Any, given: list[Tensor], versions: list[int]) -> list[Tensor]:
    """What a module hands on: the tensors it returns, then those it was given and wrote into.

    Args:
        output: what it returned.
        given: the tensors it was called with.
        versions: what :func:`versions_of` said of them before the call.
    """
    made = list(tensors_in(output))
    known = {id(each) for each in made}
    for each, before in zip(given, versions, strict=True):
        if each._version != before and id(each) not in known:  # noqa: SLF001  torch counts writes
            known.add(id(each))
            made.append(each)
    return made


def versions_of(tensors: list[Tensor]) -> list[int]:
    """How often each was written into."""
    return [each._version for each in tensors]  # noqa: SLF001


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)


def mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same containers with every tensor changed; other objects as they are."""
    if isinstance(tree, torch.Tensor):
        return change(tree)
    return _rebuilt(tree, lambda each: mapped(each, change))


def copied(tree: Any) -> Any:
    """The same with every tensor cloned, and caches that can be written to without the original."""
    if isinstance(tree, Cache):
        return _copied_cache(tree)
    if isinstance(tree, torch.Tensor):
        return tree.detach().clone()
    return _rebuilt(tree, copied)


def _rebuilt(tree: Any, change: Callable[[Any], Any]) -> Any:
    """A container of the same kind with every member changed; what is none, as it is."""
    if isinstance(tree, dict):
        return {key: change(each) for key, each in tree.items()}
    if type(tree) in {tuple, list}:
        return type(tree)(change(each) for each in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(change, tree))
    if _is_dataclass(tree):
        twin = copy.copy(tree)
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):  # frozen ones refuse to be assigned to
                object.__setattr__(twin, field.name, change(getattr(tree, field.name)))
        return twin
    return tree


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
