"""Producers and propagators, on functions small enough to know the answer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from precheck.measure.blame.examine import Examiner, ReferenceOps, Snapshot, unexpected
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.real_tokens import RealTokens
from tests import oracle

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.measure.blame.examine import Producer

HALF_MIN = torch.finfo(torch.float16).min
FLOAT_MIN = torch.finfo(torch.float32).min


class Calls(nn.Module):
    """A function as a module, with a parameter it may use."""

    def __init__(self, function: Callable[..., Tensor], weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self, *args)


@dataclass(frozen=True, slots=True)
class Examined:
    producers: list[Producer]
    output: Tensor
    sources: frozenset[int]

    @property
    def ops(self) -> list[str]:
        return [producer.node.op for producer in self.producers]


def watched(model: nn.Module, args: tuple[Tensor, ...], examination: object) -> Tensor:
    stack = ModuleStack(model)
    watcher = OpWatcher(
        stack=stack,
        parameters=Parameters(model.named_parameters()),
        real_tokens=RealTokens(num_rows=1, length=1, mask=None),
        check=lambda: None,
    )
    watcher.examination = examination  # type: ignore[assignment]
    watcher.begin(args)
    try:
        with torch.no_grad(), watcher:
            return model(*args)
    finally:
        watcher.end()
        stack.detach()


def examined(
    function: Callable[..., Tensor],
    *args: Tensor,
    weight: Tensor | None = None,
    matched: bool = True,
) -> Examined:
    """The function in float32 and in float16 on the same numbers, compared op by op.

    The first parameter of ``function`` is the module.
    """
    weight = torch.ones(1) if weight is None else weight
    reference = ReferenceOps()
    watched(Calls(function, weight), tuple(arg.clone() for arg in args), reference)
    half = Calls(function, weight.half())
    faulty = {id(half.weight)} if not half.weight.isfinite().all() else set()
    examiner = Examiner(
        reference=reference if matched else None,
        real_tokens=RealTokens(num_rows=1, length=1, mask=None),
        parameters=Parameters(faulty=faulty),
        next_identity=iter(itertools.count(1)).__next__,
    )
    output = watched(half, tuple(arg.half() for arg in args), examiner)
    return Examined(examiner.take_producers(), output, examiner.sources(output))


ONE = torch.tensor([[1.0, -2.0, 3.0]])
LARGE = torch.tensor([[1.0, -2.0, 30_000.0]])


def test_a_product_that_leaves_the_range_is_a_producer() -> None:
    result = examined(lambda _, x: x * 4, LARGE)
    (producer,) = result.producers
    assert producer.node.op == "aten.mul"
    assert producer.num_elements == 1
    assert producer.reference_abs_max == 120_000.0
    assert producer.limit == 65504.0
    assert not producer.is_weight
    assert result.sources == {producer.identity}


def test_what_is_made_from_a_fault_is_a_propagator() -> None:
    result = examined(lambda _, x: ((x * 4) + 1) / 8 - 1, LARGE)
    assert result.ops == ["aten.mul"]
    assert result.sources == {result.producers[0].identity}


def test_two_faults_that_do_not_know_each_other_are_two_producers() -> None:
    result = examined(lambda _, x: (x * 4) + (x * 5), LARGE)
    assert result.ops == ["aten.mul", "aten.mul"]
    assert result.sources == {producer.identity for producer in result.producers}


def test_a_fault_that_is_absorbed_does_not_hide_the_next() -> None:
    result = examined(lambda _, x: torch.tanh(x * 4) * 30_000 * 4, LARGE)
    assert result.ops == ["aten.mul", "aten.mul"]
    first, second = result.producers
    assert first.node.ordinal == 0
    assert second.node.ordinal == 2
    assert result.sources == {second.identity}


def test_an_absorbed_fault_does_not_reach_the_output() -> None:
    result = examined(lambda _, x: torch.tanh(x * 4), LARGE)
    assert result.ops == ["aten.mul"]
    assert result.sources == frozenset()


def test_a_mask_that_rounds_to_minus_infinity_is_no_fault() -> None:
    def masked(_: nn.Module, x: Tensor) -> Tensor:
        mask = torch.full_like(x, torch.finfo(x.dtype).min).tril(-1)
        return (x + mask).softmax(dim=-1)

    scores = torch.full((3, 3), -40.0)
    with_infinity = examined(masked, scores)
    assert (scores.half() + HALF_MIN).isinf().all()
    assert with_infinity.ops == []
    assert with_infinity.sources == frozenset()


def test_a_mask_of_minus_infinity_is_no_fault() -> None:
    result = examined(
        lambda _, x: x.masked_fill(x < 0, -torch.inf).softmax(dim=-1), ONE.repeat(2, 1)
    )
    assert result.ops == []


def test_the_softmax_of_a_fully_masked_row_is_a_producer() -> None:
    result = examined(lambda _, x: (x + torch.finfo(x.dtype).min).softmax(dim=-1), ONE - 50)
    (producer,) = result.producers
    assert producer.node.op == "aten._softmax"
    assert producer.num_elements == 3
    assert result.output.isnan().all()


def test_nan_where_the_reference_holds_a_mask_is_a_fault() -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        low = torch.full_like(x, torch.finfo(x.dtype).min)
        # -inf + inf in float16, and a mask still in float32
        return (low - 1000) + x * 4

    assert not examined(function, ONE).producers
    result = examined(function, torch.full((1, 1), 30_000.0))
    assert result.ops == ["aten.mul"]
    assert result.output.isnan().all()
    assert result.sources


def test_a_narrowing_cast_is_a_producer_and_what_it_was_given_its_reference() -> None:
    result = examined(lambda _, x: (x.float() * 4).to(x.dtype), LARGE)
    (producer,) = result.producers
    assert producer.node.op == "aten._to_copy"
    assert producer.node.is_cast
    assert producer.reference_abs_max == 120_000.0
    assert producer.limit == 65504.0


def test_a_cast_of_a_mask_is_no_fault() -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        return x + torch.full((1, 3), FLOAT_MIN).to(x.dtype)

    result = examined(function, ONE)
    assert result.output.isinf().all()
    assert result.ops == []


def _added_in_place(x: Tensor, mask: Tensor) -> Tensor:
    x = x * 1
    x += mask
    return x


MASKINGS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "added in place": lambda x, hidden, number: _added_in_place(
        x, torch.where(hidden, number, 0.0).float()
    ),
    "cast, then added": lambda x, hidden, number: (
        x + torch.where(hidden, number, 0.0).float().to(x.dtype)
    ),
    "multiplied, then added": lambda x, hidden, number: x + hidden.to(x.dtype) * number,
    "moved, then added": lambda x, hidden, number: (
        x + torch.cat([(hidden.to(x.dtype) * number)[:1], torch.zeros_like(x)[1:]])
    ),
    "subtracted": lambda x, hidden, number: x - hidden.to(x.dtype) * -number,
}


@pytest.mark.parametrize("number", [-1e9, -1e10, -1e30])
@pytest.mark.parametrize("how", MASKINGS)
def test_a_mask_that_float32_holds_and_float16_does_not_is_no_fault(
    how: str, number: float
) -> None:
    hidden = torch.tensor([[False, True, True], [False, False, False]])

    def function(module: nn.Module, x: Tensor) -> Tensor:
        del module
        return MASKINGS[how](x, hidden, number).softmax(dim=-1)

    scores = torch.tensor([[1.0, -2.0, 3.0], [0.0, 30_000.0, -40.0]])
    healthy = examined(function, scores)
    assert healthy.output.isfinite().all()
    assert (healthy.ops, healthy.sources) == ([], frozenset())
    # a product that leaves the range is found under the same mask, in either direction
    for scale in (4, -4):
        broken = examined(lambda module, x: function(module, x * scale), scores)  # noqa: B023
        assert broken.ops == ["aten.mul"], scale


def test_the_sum_of_two_numbers_that_fit_is_no_mask() -> None:
    # The reference is far below what float16 holds, as where an earlier layer was clamped.
    def function(_: nn.Module, x: Tensor) -> Tensor:
        return x.clamp(min=-6e4) * (1 if x.dtype is torch.float16 else 1e6) - 6e4

    result = examined(function, torch.tensor([[1.0, -6e4]]))
    assert result.ops == ["aten.sub"]
    assert result.sources


def test_a_widening_cast_hands_a_fault_on() -> None:
    result = examined(lambda _, x: (x * 4).float().mul(2).to(x.dtype), LARGE)
    assert result.ops == ["aten.mul"]
    assert result.sources == {result.producers[0].identity}


def test_a_fault_written_in_place_is_seen_through_every_view() -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        base = x.clone()
        view = base[:, 1:]
        view.mul_(4)
        return base + 1

    result = examined(function, LARGE)
    assert result.ops == ["aten.mul_"]
    assert result.sources == {result.producers[0].identity}


def test_a_fault_repaired_in_place_does_not_hide_the_next() -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        y = x.clone()
        y.mul_(4)
        y.clamp_(-60_000, 60_000)
        return y * 2

    result = examined(function, LARGE)
    assert result.ops == ["aten.mul_", "aten.mul"]
    assert result.sources == {result.producers[1].identity}


def test_a_tensor_that_takes_the_place_of_a_tainted_one_is_clean() -> None:
    # An integer tensor gets the identity of the last tainted tensor that is gone.
    def function(_: nn.Module, x: Tensor) -> Tensor:
        total = x * 0
        for _turn in range(20):
            broken = x * 4
            total = total + torch.tanh(broken)
            del broken
            chosen = x.argmax(dim=-1, keepdim=True)
        return total * 30_000 + chosen

    result = examined(function, LARGE)
    last = result.producers[-1]
    assert last.node.ordinal == max(producer.node.ordinal for producer in result.producers)
    assert result.sources == {last.identity}


def test_without_a_match_only_what_is_made_of_finite_inputs_is_a_producer() -> None:
    assert examined(lambda _, x: x * 4, LARGE, matched=False).ops == ["aten.mul"]
    assert examined(lambda _, x: (x * 4) * 2, LARGE, matched=False).ops == ["aten.mul"]


def test_without_a_match_writing_or_reading_a_mask_is_no_fault() -> None:
    masks = (
        lambda _, x: x.masked_fill(x < 0, -torch.inf),
        lambda _, x: torch.full_like(x, -torch.inf),
        lambda _, x: torch.where(x < 0, -torch.inf, x),
        lambda _, x: (x + torch.finfo(x.dtype).min) * 2,
        lambda _, x: (x.masked_fill(x < 0, -torch.inf) + 1) * 2,
    )
    for mask in masks:
        assert examined(mask, ONE, matched=False).ops == []


def test_a_weight_that_left_the_dtype_is_what_is_named() -> None:
    result = examined(
        lambda module, x: x @ module.weight.t(), ONE, weight=torch.tensor([[1.0, 70_000.0, 2.0]])
    )
    (producer,) = result.producers
    assert producer.is_weight
    assert producer.node.op == "aten.mm"


def test_shapes_that_differ_do_not_match() -> None:
    def function(_: nn.Module, x: Tensor) -> Tensor:
        kept = x[:, : 3 if x.dtype is torch.float32 else 2]
        return kept * 4

    assert examined(function, LARGE).ops == []
    assert examined(function, LARGE.flip(-1)).ops == ["aten.mul"]


SPECIAL = st.sampled_from([0.0, 1.0, -3.0, 6e4, torch.inf, -torch.inf, torch.nan, FLOAT_MIN])


@given(st.lists(st.tuples(SPECIAL, SPECIAL), min_size=1, max_size=20))
def test_unexpected_elements_are_those_of_the_definition(pairs: list[tuple[float, float]]) -> None:
    output, reference = (torch.tensor(column) for column in zip(*pairs, strict=True))
    expected = oracle.unexpected(output, reference)
    elements = unexpected(output, reference)
    assert (elements is None) == (not expected.any())
    assert elements is None or torch.equal(elements, expected)


@given(st.lists(SPECIAL, min_size=1, max_size=20))
def test_without_a_reference_everything_that_is_not_finite_is_unexpected(
    values: list[float],
) -> None:
    output = torch.tensor(values)
    elements = unexpected(output, None)
    assert (elements is None) == bool(output.isfinite().all())
    assert elements is None or torch.equal(elements, ~output.isfinite())


@given(st.lists(SPECIAL, min_size=1, max_size=20))
def test_a_snapshot_keeps_what_a_comparison_needs(values: list[float]) -> None:
    tensor = torch.tensor(values)
    snapshot = Snapshot.of(tensor)
    numbers = [abs(value) for value in values if abs(value) < 1e38]
    assert snapshot.abs_max() == (pytest.approx(max(numbers)) if numbers else None)
    is_plain = len(numbers) == len(values)
    assert (snapshot.values is None) == is_plain


def test_an_empty_tensor_is_no_fault() -> None:
    empty = torch.empty(0, 3)
    assert unexpected(empty, None) is None
    assert Snapshot.of(empty).abs_max() == 0.0


def test_memory_that_is_not_written_yet_makes_no_fault() -> None:
    def through_new_memory(_: Calls, values: Tensor) -> Tensor:
        # torch fills new memory with NaN while it has to be deterministic
        torch.use_deterministic_algorithms(values.dtype is torch.float16)
        try:
            buffer = values.new_empty(values.shape)
        finally:
            torch.use_deterministic_algorithms(False)
        buffer[...] = values
        return buffer * 2

    result = examined(through_new_memory, torch.ones(2, 3))
    assert result.ops == []
    assert result.sources == frozenset()
    assert result.output.isfinite().all()
