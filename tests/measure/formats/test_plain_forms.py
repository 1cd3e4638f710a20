"""What the independent forms of these tests read back of a tensor is what precheck reads back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS
from precheck.measure.formats.numbers import as_stored
from tests.measure.formats.plain_caches import CACHES, ROTATED, with_scale
from tests.measure.formats.plain_weights import FORMS

if TYPE_CHECKING:
    from torch import Tensor

STORED_SCALE = "fp8_e4m3_checkpoint"
SCALE = 0.037
WIDTHS = (40, 64, 96, 192, 256, 512, 576)
"""Some fill groups and super-blocks, and some do not."""


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """With an outlier channel, large and small rows, integers and halves, and an empty row."""
    generator = torch.Generator().manual_seed(22)
    tensor = torch.randn(*shape, generator=generator)
    tensor[..., 3] *= 60
    tensor[..., 0, :] *= 500
    tensor[..., 1, :] *= 1e-4
    tensor[..., 2, :] = torch.arange(shape[-1]) / 4 - 31.75
    tensor[..., 4, :] = 0.0
    return tensor.to(dtype).float()


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_every_format_has_an_independent_form() -> None:
    assert {*CACHES, STORED_SCALE} == set(CACHE_FORMATS)
    assert set(FORMS) == set(WEIGHT_FORMATS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("name", [name for name in CACHES if name not in ROTATED])
def test_keys_and_values_are_the_same(name: str, part: str, dtype: torch.dtype) -> None:
    rounded = getattr(CACHES[name], part)
    for head_dim in WIDTHS:
        states = drawn(2, 3, 16, head_dim, dtype=dtype)
        assert_same(as_stored(states, getattr(CACHE_FORMATS[name], part)), rounded(states))


@pytest.mark.parametrize("part", ["keys", "values"])
@pytest.mark.parametrize("name", ROTATED)
def test_rotated_ones_differ_where_a_sum_rounds_the_other_way(name: str, part: str) -> None:
    rounded = getattr(CACHES[name], part)
    for head_dim in (64, 128, 192, 256):
        states = drawn(2, 3, 16, head_dim)
        found = as_stored(states, getattr(CACHE_FORMATS[name], part))
        expected = rounded(states)
        size = states.abs().amax(-1, keepdim=True)
        is_close = ((found - expected).abs() <= 1e-5 * size).all(-1)
        assert is_close.double().mean() > 0.9
        assert (found - expected).norm() < 0.1 * (expected - states).norm()
    assert_same(
        as_stored(drawn(1, 2, 8, 80), getattr(CACHE_FORMATS[name], part)),
        rounded(drawn(1, 2, 8, 80)),
    )


def test_the_scale_of_a_checkpoint_is_the_same() -> None:
    states = drawn(2, 3, 16, 64)
    found = as_stored(states, CACHE_FORMATS[STORED_SCALE].keys, calibrated_amax=448 * SCALE)
    assert_same(found, with_scale(SCALE)(states))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", FORMS)
def test_weights_are_the_same(name: str, dtype: torch.dtype) -> None:
    for num_inputs in WIDTHS:
        rows = drawn(200, num_inputs, dtype=dtype)
        assert_same(as_stored(rows, WEIGHT_FORMATS[name].weights), FORMS[name].weights(rows))


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.inputs])
def test_inputs_are_the_same(name: str) -> None:
    rounded, numbers = FORMS[name].inputs, WEIGHT_FORMATS[name].activations
    assert rounded is not None
    assert numbers is not None
    for num_inputs in WIDTHS:
        values = drawn(2, 50, num_inputs)
        assert_same(as_stored(values, numbers), rounded(values))
