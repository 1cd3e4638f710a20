"""What a trace without numbers knows all the same, and what it must not pretend to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from precheck.errors import UntraceableError
from precheck.measure.trace.flow import FakeModel

if TYPE_CHECKING:
    from collections.abc import Callable

IDS = torch.tensor([[5, 9, 9, 2]])


def traced(function: Callable[[nn.Module], Any]) -> Any:
    """What a function of a small model comes to, where parameters have no values."""
    model = nn.Embedding(16, 4)
    with FakeModel(model) as fake:
        return fake.call(lambda: function(model))


def test_what_follows_from_token_ids_is_known() -> None:
    assert traced(lambda _: (IDS == 9).sum().item()) == 2
    assert traced(lambda _: IDS.nonzero().shape) == (4, 2)
    assert traced(lambda _: torch.linspace(0, 3, 4).long().tolist()) == [0, 1, 2, 3]


def test_a_known_mask_picks_rows_that_are_not_known() -> None:
    assert traced(lambda model: model(IDS)[IDS == 9].shape) == (2, 4)


def test_known_scalars_make_a_tensor() -> None:
    assert traced(lambda _: torch.tensor([IDS.max() + 1]).tolist()) == [10]


def test_what_a_parameter_takes_part_in_is_not_known() -> None:
    for function in (
        lambda model: model(IDS).sum().item(),
        lambda model: bool(model.weight.max() > 0),
        lambda model: (model(IDS) > 0).nonzero(),
    ):
        with pytest.raises(UntraceableError, match="depend on values"):
            traced(function)


def test_what_something_unknown_was_written_into_is_not_known_any_more() -> None:
    def overwritten(model: nn.Module) -> float:
        zeros = torch.zeros(4)
        view = zeros[:2]
        zeros.copy_(model(IDS)[0, 0])
        return float(view.sum())

    def filled(_: nn.Module) -> float:
        zeros = torch.zeros(4)
        view = zeros[:2]
        zeros.fill_(3.0)
        return float(view.sum())

    with pytest.raises(UntraceableError, match="depend on values"):
        traced(overwritten)
    assert traced(filled) == 6.0


def test_a_token_without_a_row_is_an_error_as_it_will_be_when_it_runs() -> None:
    with pytest.raises(UntraceableError, match="token 16 is outside the vocabulary"):
        traced(lambda model: model(torch.tensor([16])))
