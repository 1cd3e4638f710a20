"""The emulation that ``make engine`` compares engines with, against plain definitions."""

from __future__ import annotations

import pytest
import torch

from benchmarks.engines.emulation import (
    FP8,
    flushed,
    in_llama_cpp,
    interleaved,
    q4_0,
    q8_0,
    rotated,
    tile_product,
    toward_zero,
)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cache", FP8)
def test_digits_are_cut_off(cache: str) -> None:
    codes = torch.arange(128, dtype=torch.uint8).view(FP8[cache]).float()
    codes = codes[codes.isfinite()]
    given = torch.cat([numbers(2000) * size for size in (1e-3, 1.0, 30.0, 1e5)])
    largest = codes[torch.searchsorted(codes, given.abs(), right=True) - 1]
    torch.testing.assert_close(
        toward_zero(given, dtype=FP8[cache]), largest.copysign(given), rtol=0, atol=0
    )


def test_partial_sums_below_the_limit_are_lost() -> None:
    left, right = numbers(2, 40), numbers(40, 3)
    torch.testing.assert_close(tile_product(left, right, below=0.0), left @ right)
    small = torch.full((1, 40), 2.0**-7)
    assert tile_product(small, torch.ones(40, 1), below=2.0**-6).item() == 0.0
    assert flushed(torch.tensor([2.0**-6, -(2.0**-7)]), below=2.0**-6).tolist() == [2.0**-6, 0.0]


def test_blocks_round_as_ggml_does() -> None:
    block = torch.zeros(32)
    block[:4] = torch.tensor([127.0, 2.5, -2.5, 2.4])
    assert q8_0(block)[:4].tolist() == [127.0, 3.0, -3.0, 2.0]
    block[:4] = torch.tensor([-8.0, 9.0 - 1.5, 0.5, -0.6])
    assert q4_0(block)[:4].tolist() == [-8.0, 7.0, 1.0, -1.0]


def test_a_rotation_leaves_scores_as_they_are() -> None:
    query, key = numbers(1, 2, 5, 64), numbers(1, 2, 5, 64).flip(dims=[2])
    torch.testing.assert_close(rotated(key, stored=torch.Tensor.float), key)
    scores = interleaved(query, stored=torch.Tensor.float)
    scores = scores @ interleaved(key, stored=torch.Tensor.float).mT
    torch.testing.assert_close(scores, query @ key.mT)


def test_a_rotation_spreads_an_outlier() -> None:
    query, key = numbers(1, 1, 50, 64).flip(dims=[2]), numbers(1, 1, 50, 64)
    key[..., 3] = 60.0
    errors = {}
    for name, emulation in in_llama_cpp("q4_0").items():
        error = emulation.query(query) @ emulation.key(key).mT - query @ key.mT
        errors[name] = float((error - error.mean(dim=-1, keepdim=True)).norm())  # softmax's view
    assert errors["rotated"] < errors["nearest"] / 2
