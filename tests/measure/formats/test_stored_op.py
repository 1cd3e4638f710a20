"""Storing is an operation of torch for any tensor that a model may have."""

from __future__ import annotations

import pytest
import torch

from precheck.facts.formats import CACHE_FORMATS
from precheck.measure.formats.parts import Parts
from precheck.measure.formats.stored_op import Stored, store

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("name", CACHE_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_views_are_stored_as_their_copies_and_stay_what_they_were(
    name: str, dtype: torch.dtype
) -> None:
    states = torch.randn(2, 5, 3, 16, dtype=dtype).transpose(1, 2)
    before = states.clone()
    with torch.inference_mode():
        stored = store("0", states, Stored.KEYS, name)
        expected = store("0", states.contiguous(), Stored.KEYS, name)
    assert stored.dtype is dtype
    assert stored.shape == states.shape
    assert torch.equal(stored, expected)
    assert torch.equal(states, before)
    assert stored.untyped_storage().data_ptr() != states.untyped_storage().data_ptr()


@pytest.mark.parametrize("name", CACHE_FORMATS)
@pytest.mark.parametrize("shape", [(2, 3, 0, 16), (0, 3, 5, 16)])
def test_nothing_is_stored_as_nothing(name: str, shape: tuple[int, ...]) -> None:
    parts = Parts()
    stored = store("0", torch.empty(shape), Stored.KEYS, name, parts=parts)
    assert stored.shape == shape
    assert parts.stats == {}
