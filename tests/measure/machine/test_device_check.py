from __future__ import annotations

import torch

from precheck.facts.hardware import Float16Sums
from precheck.measure.machine.device_check import float16_sums


def exact(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.double() @ right.double()).half()


def in_float16(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """A kernel whose accumulator is float16, 64 products at a time."""
    total = torch.zeros(left.shape[0], right.shape[1], dtype=torch.float16)
    for start in range(0, left.shape[1], 64):
        part = slice(start, start + 64)
        total = (total.float() + left[:, part].float() @ right[part].float()).half()
    return total


def split(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Float32 inside each of eight blocks, which are added up in float16."""
    blocks = [
        (a.float() @ b.float()).half()
        for a, b in zip(left.chunk(8, dim=1), right.chunk(8), strict=True)
    ]
    total = blocks[0]
    for block in blocks[1:]:
        total = total + block
    return total


def split_long_ones(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Splits what is long and narrow alone, as libraries do."""
    return split(left, right) if left.shape[1] > 100 * left.shape[0] else exact(left, right)


def test_a_float32_accumulator_is_known() -> None:
    assert float16_sums("cpu", product=exact) is Float16Sums.FLOAT32


def test_a_float16_accumulator_is_found() -> None:
    assert float16_sums("cpu", product=in_float16) is None


def test_blocks_that_are_added_up_in_float16_are_found() -> None:
    assert float16_sums("cpu", product=split) is None
    assert float16_sums("cpu", product=split_long_ones) is Float16Sums.SPLIT_K
