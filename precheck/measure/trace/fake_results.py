"""Fake results that are remembered: layers repeat the same operations over the same shapes.

What a fake operation returns follows from the shapes and dtypes of what it reads. Torch keeps them
too, but takes most of a trace to look them up, and leaves out the products of linears.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import (  # its only spelling
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
)

from precheck.measure.watch.op_kinds import op_kind
from precheck.measure.watch.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch._ops import OpOverload


class _Described(NamedTuple):
    """All that is known of a fake tensor on the CPU."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype


class _Remembered(NamedTuple):
    """A result."""

    described: _Described
    viewed: int | None
    """Which of the tensors that the operation reads it is a view of."""


class FakeResults:
    """Results of the operations of one trace, by what they read."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._found: dict[object, _Remembered] = {}

    def result(self, func: OpOverload, args: Any, kwargs: Any, compute: Callable[[], Any]) -> Any:
        """What an operation returns: made as before where it read tensors like these.

        Args:
            func: the operation.
            args: its arguments; the tensors among them are fake.
            kwargs: the same, by name.
            compute: runs it.
        """
        tensors = list(tensors_in((args, kwargs)))
        if not _is_plain(func) or not all(map(_is_ordinary, tensors)):
            return compute()
        key = (func, _frozen(args), _frozen(kwargs))
        found = self._found.get(key)
        if found is not None:
            return self._made(found, tensors)
        output = compute()
        if _is_ordinary(output):
            storages = [tensor.untyped_storage()._cdata for tensor in tensors]  # noqa: SLF001
            own = output.untyped_storage()._cdata  # noqa: SLF001
            viewed = storages.index(own) if own in storages else None
            self._found[key] = _Remembered(_described(output), viewed)
        return output

    def _made(self, found: _Remembered, tensors: list[Tensor]) -> Tensor:
        shape, stride, offset, dtype = found.described
        with in_kernel_invocation_manager(self._mode):
            if found.viewed is None:
                made = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
            else:
                made = torch.empty(0, dtype=dtype, device="meta")
                made.set_(tensors[found.viewed].untyped_storage(), offset, shape, stride)
        return FakeTensor(self._mode, made, torch.device("cpu"))


@cache
def _is_plain(func: OpOverload) -> bool:
    """Whether it writes into nothing, and the shape of its result depends on no number."""
    depends = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not op_kind(func).overwrites and not depends.intersection(func.tags)


def _is_ordinary(tensor: Any) -> bool:
    """Whether it is fake, dense, on the CPU, and has no numbers."""
    return (
        type(tensor) is FakeTensor
        and tensor.constant is None
        and tensor.fake_device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def _described(tensor: Tensor) -> _Described:
    return _Described(tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype)


def _frozen(tree: Any) -> object:
    """Arguments, to be compared: tensors by what is known of them, numbers with their type."""
    if isinstance(tree, torch.Tensor):
        return _described(tree)
    if isinstance(tree, list | tuple):
        return tuple(map(_frozen, tree))
    if isinstance(tree, dict):
        return tuple((name, _frozen(branch)) for name, branch in tree.items())
    return type(tree), tree
