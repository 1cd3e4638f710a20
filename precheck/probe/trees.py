"""Tensors inside nested tuples, lists and dicts: what modules take and return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

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
    """The same with every tensor cloned."""
    return mapped(tree, lambda each: each.detach().clone())
