"""Numbers that a trace knows although its tensors have none: token ids, sizes, positions, masks.

A forward that takes images asks for them: where its placeholders are, how many patches there are.
They follow from its inputs and from constants, so what is computed of these alone is computed for
real, beside the fake tensors. What a parameter takes part in is not known.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import (  # its only spelling
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode

from precheck.measure.trace.fake_results import FakeResults
from precheck.measure.watch.op_kinds import GROUPED_PRODUCT, op_kind
from precheck.measure.watch.trees import mapped, tensors_in

if TYPE_CHECKING:
    from torch import Tensor
    from torch._ops import OpOverload


class KnownNumbers:
    """The real tensors behind some of the fake ones."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._real: dict[int, tuple[Tensor, Tensor]] = {}
        """By the identity of a fake tensor, which is kept so that no other one gets it."""
        self._results = FakeResults(mode)
        self._overwritten: set[int] = set()
        """Real memory that something unknown was written into."""

    def run(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """What the operation returns: fake tensors, or a number where its inputs are known.

        Raises:
            DataDependentOutputException: a number that is not known.
            DynamicOutputShapeException: a shape that follows from such numbers.
        """
        real = self._real_result(func, args, kwargs)
        if real is None:
            picked = self._with_indices(func, args)
            output = self._results.result(
                func, picked, kwargs, lambda: _fake_result(func, picked, kwargs)
            )
            self._forget(written_tensors(func, args))
            return output
        try:
            output = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return mapped(real, self._fake_of)
        for fake, tensor in zip(tensors_in(output), tensors_in(real), strict=True):
            self._real[id(fake)] = (fake, tensor)
        return output

    def _real_result(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        """What it returns for real tensors; None if one is not known."""
        if any(self._real_of(tensor) is None for tensor in tensors_in((args, kwargs))):
            return None
        try:
            with unset_fake_temporarily():
                return func(*mapped(args, self._real_of), **mapped(kwargs, self._real_of))
        except (RuntimeError, NotImplementedError):  # no kernel for this dtype
            return None

    def _real_of(self, tensor: Tensor) -> Tensor | None:
        if not isinstance(tensor, FakeTensor):
            return None if tensor.data_ptr() in self._overwritten else tensor
        return self._real.get(id(tensor), (tensor, None))[1]

    def _fake_of(self, real: Tensor) -> Tensor:
        fake: Tensor = self._mode.from_tensor(real)
        self._real[id(fake)] = (fake, real)
        return fake

    def _with_indices(self, func: OpOverload, args: Any) -> Any:
        """The arguments of an indexing, a known mask in it as the positions that it picks."""
        if op_kind(func).name == "aten.embedding":
            self._check_rows(*args[:2])
        if op_kind(func).name != "aten.index":
            return args
        indices: list[Tensor | None] = []
        for index in args[1]:
            real = None if index is None else self._real_of(index)
            if real is not None and real.dtype is torch.bool:
                with unset_fake_temporarily():
                    positions = real.nonzero(as_tuple=True)
                indices += map(self._fake_of, positions)
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    def _check_rows(self, weight: Tensor, ids: Tensor) -> None:
        """A fake embedding has a row for every token id, and a real one has not."""
        real = self._real_of(ids)
        if real is None or not real.numel():
            return
        with unset_fake_temporarily():
            largest = int(real.max())
        if largest >= weight.shape[0]:
            raise IndexError(f"token {largest} is outside the vocabulary of {weight.shape[0]}")

    def _forget(self, written: list[Tensor]) -> None:
        """What something unknown was written into, and what shares its memory."""
        storages = {tensor.untyped_storage()._cdata for tensor in written}  # noqa: SLF001
        self._overwritten |= {
            tensor.data_ptr() for tensor in written if not isinstance(tensor, FakeTensor)
        }
        if storages:
            self._real = {
                key: (fake, real)
                for key, (fake, real) in self._real.items()
                if fake.untyped_storage()._cdata not in storages  # noqa: SLF001
            }


class NumbersInLists(TorchFunctionMode):
    """``torch.tensor([scalar])`` reads the memory of a scalar tensor: here it asks for its item."""

    def __torch_function__(
        self, func: Any, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.tensor and args and isinstance(args[0], list | tuple):
            args = (mapped(args[0], lambda tensor: tensor.tolist()), *args[1:])
        return func(*args, **(kwargs or {}))


def _fake_result(func: OpOverload, args: Any, kwargs: Any) -> Any:
    """What the operation returns; the fake grouped product knows bfloat16 only."""
    if GROUPED_PRODUCT not in op_kind(func).name:
        return func(*args, **kwargs)
    dtype = next(tensors_in(args)).dtype

    def known(tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor

    return func(*mapped(args, known), **mapped(kwargs, known)).to(dtype)


def written_tensors(func: OpOverload, args: Any) -> list[Tensor]:
    """The arguments that an operation writes into."""
    writes = _writes(func)
    if not any(writes):
        return []
    return list(
        tensors_in([arg for arg, is_written in zip(args, writes, strict=False) if is_written])
    )


@cache
def _writes(func: OpOverload) -> tuple[bool, ...]:
    return tuple(
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in func._schema.arguments  # noqa: SLF001  its only spelling
    )
