"""Fake results that are made from what an operation returned before, against real ones."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from precheck.measure.trace.fake_results import FakeResults

if TYPE_CHECKING:
    from torch import Tensor

aten = torch.ops.aten
OPS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "a transpose": (aten.transpose.int, (1, 2)),
    "rows from the third on": (aten.slice.Tensor, (1, 2, 5)),
    "another shape": (aten.view.default, ([10, 4],)),
    "a sum": (aten.sum.dim_IntList, ([-1], True)),
    "a number": (aten.add.Tensor, (1.0,)),
}


def described(tensor: Tensor, source: Tensor) -> tuple[object, ...]:
    storages = [one.untyped_storage()._cdata for one in (tensor, source)]  # noqa: SLF001  its only spelling
    layout = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)
    return (*layout, tensor.device.type, storages[0] == storages[1])


@pytest.mark.parametrize("name", OPS)
def test_a_result_is_the_same_the_second_time(name: str) -> None:
    func, rest = OPS[name]
    real = torch.ones(2, 5, 4)
    expected = described(func(real, *rest), real)
    num_computed = 0

    def compute(source: Tensor) -> Any:
        nonlocal num_computed
        num_computed += 1
        return func(source, *rest)

    with FakeTensorMode() as mode:
        results = FakeResults(mode)
        for _ in range(2):
            source = torch.ones(2, 5, 4)
            made = results.result(func, (source, *rest), {}, partial(compute, source))
            assert described(made, source) == expected
    assert num_computed == 1


def test_other_shapes_strides_dtypes_and_numbers_are_other_results() -> None:
    with FakeTensorMode() as mode:
        results = FakeResults(mode)
        sources = [
            torch.ones(2, 4),
            torch.ones(4, 2),
            torch.ones(4, 2).T,
            torch.ones(2, 4, dtype=torch.float16),
        ]
        for source in sources:
            for number in (1, 1.0, True):
                args = (source, number)
                made = results.result(aten.add.Tensor, args, {}, partial(aten.add.Tensor, *args))
                assert described(made, source) == described(source + number, source)


def test_what_is_written_into_and_what_holds_numbers_is_computed_every_time() -> None:
    with FakeTensorMode() as mode:
        results = FakeResults(mode)
        source, constant = torch.ones(3), torch.tensor(2.0)
        for _ in range(2):
            made = results.result(aten.add_.Tensor, (source, 1.0), {}, partial(source.add_, 1.0))
            assert made is source
            doubled = results.result(
                aten.mul.Tensor, (constant, 2.0), {}, partial(constant.mul, 2.0)
            )
            assert constant.item() == 2.0  # it has its number, so it is no ordinary fake tensor
            assert doubled.shape == ()
