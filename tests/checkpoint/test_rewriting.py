"""Tensors times powers of two, written by hand and read by safetensors."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precheck.checkpoint.rewriting import multiplied, write_checkpoint
from precheck.checkpoint.source import open_checkpoint
from precheck.errors import CheckpointCorruptError
from precheck.records.outcomes.fix import Extent, TensorChange

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@given(
    values=st.lists(st.floats(-1000, 1000, width=16), min_size=1, max_size=20),
    power=st.integers(-8, 8),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=200, deadline=None)
def test_a_power_of_two_can_be_taken_back(
    values: Sequence[float], power: int, dtype: torch.dtype
) -> None:
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    # below this, digits are lost: the proof counts those
    tensor[tensor.abs() < torch.finfo(dtype).smallest_normal * 2**9] = 0
    there = multiplied(tensor, [TensorChange(power=power)])
    if bool(there.isfinite().all()):
        assert torch.equal(multiplied(there, [TensorChange(power=-power)]), tensor)
        assert torch.equal(there.double(), tensor.double() * 2.0**power)
    assert there.dtype == dtype


def test_only_the_part_is_multiplied_and_the_tensor_is_left_alone() -> None:
    tensor = torch.ones(4, 3)
    found = multiplied(
        tensor,
        [
            TensorChange(power=1, block=(Extent(dim=-2, start=0, stop=2),)),
            TensorChange(power=-1, block=(Extent(dim=-2, start=2, stop=3),)),
        ],
    )
    assert found[:, 0].tolist() == [2.0, 2.0, 0.5, 1.0]
    assert torch.equal(tensor, torch.ones(4, 3))


def test_weights_that_change_while_they_are_written(healthy: Path, tmp_path: Path) -> None:
    model = shutil.copytree(healthy, tmp_path / "model")
    checkpoint = open_checkpoint(str(model), observe=lambda _: None)
    with checkpoint.open_weights() as stored:
        with (model / "model.safetensors").open("ab") as file:
            file.write(b"0")
        with pytest.raises(CheckpointCorruptError, match="weights file changed"):
            write_checkpoint(tmp_path, checkpoint, stored, changes={}, settings={}, dtype="float16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_plus_a_weight_is_multiplied_in_float32(dtype: torch.dtype) -> None:
    weight = torch.tensor([0.0, 3.0, -0.5, 40_000.0]).to(dtype)
    found = multiplied(weight, [TensorChange(power=-4, shift=1.0)])
    assert found.dtype is torch.float32
    assert torch.equal(1 + found.double(), (1 + weight.double()) / 16)
