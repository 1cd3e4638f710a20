"""Which parameters of a run are in memory, and which of them are faulty."""

from __future__ import annotations

import torch
from torch import nn

from precheck.measure.models.skeleton import twin
from precheck.measure.watch.parameters import Parameters


def test_parameters_and_buffers_go_by_their_names() -> None:
    norm = nn.BatchNorm1d(2)
    parameters = Parameters.of(norm)
    assert parameters.name_of(norm.weight) == "weight"
    assert parameters.name_of(norm.running_mean) == "running_mean"  # type: ignore[arg-type]
    assert parameters.name_of(torch.ones(2)) is None


def test_a_parameter_is_known_from_when_it_is_put_in_until_it_is_removed() -> None:
    parameters = Parameters()
    names = parameters.names  # those who watch keep the mapping
    weight = torch.ones(2)
    parameters.add(weight, "weight", is_faulty=True)
    assert names == {id(weight): "weight"}
    assert parameters.is_faulty(weight)
    parameters.remove(weight)
    assert names == {}
    assert not parameters.is_faulty(weight)
    parameters.add(weight, "weight", is_faulty=False)
    assert not parameters.is_faulty(weight)


def test_a_twin_has_the_same_faulty_parameters_and_a_record_of_its_own() -> None:
    linear = nn.Linear(2, 2)
    parameters = Parameters.of(linear, faulty={id(linear.weight)})
    other = parameters.of_twin(twin(linear))
    assert other.name_of(linear.weight) == "weight"
    assert other.is_faulty(linear.weight)
    other.remove(linear.weight)
    assert parameters.is_faulty(linear.weight)
