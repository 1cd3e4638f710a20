"""From exponents of parts to blocks of tensors."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from precheck.checkpoint.rewriting import block_of
from precheck.cure.scales.blocks import parameter_changes, uniform_blocks
from precheck.cure.scales.forms import Kind, Unknown
from precheck.records.outcomes.fix import Extent, TensorChange

CLASSES = {
    ("experts", -3): torch.tensor([0, 1, 2]),
    ("experts", -2): torch.tensor([0, 0, 1, 1, 0, 1]),
}


def part(expert: int, rows: int) -> Unknown:
    return Unknown(kind=Kind.WEIGHT, name="experts", part=((-3, expert), (-2, rows)))


@given(st.lists(st.integers(-2, 2), min_size=6, max_size=6))
def test_every_element_is_multiplied_once_by_its_own_power(powers: list[int]) -> None:
    exponents = {part(index // 2, index % 2): power for index, power in enumerate(powers)}
    (changes,) = parameter_changes(exponents, CLASSES).values()
    sums = torch.zeros(3, 6, 4, dtype=torch.int16)
    for change in changes:
        block_of(sums, change.block).add_(change.power)
    for unknown, power in exponents.items():
        (_, expert), (_, rows) = unknown.part
        is_row = CLASSES["experts", -2] == rows
        assert set(sums[expert, is_row].flatten().tolist()) == {power}


def test_what_is_multiplied_alike_is_one_block() -> None:
    alike = {part(expert, rows): -3 for expert in range(3) for rows in range(2)}
    assert parameter_changes(alike, CLASSES) == {"experts": (TensorChange(power=-3),)}
    one_expert = {part(1, rows): -3 for rows in range(2)}
    (change,) = parameter_changes(one_expert, CLASSES)["experts"]
    assert change.block == (Extent(dim=-3, start=1, stop=2),)


def test_settings_are_no_tensors_and_a_whole_parameter_is_no_block() -> None:
    exponents = {
        Unknown(kind=Kind.SETTING, name="eps"): -2,
        Unknown(kind=Kind.SHIFTED_WEIGHT, name="norm", shift=1.0): -1,
    }
    assert parameter_changes(exponents, {}) == {
        "norm": (TensorChange(power=-1, shift=1.0),),
    }


@given(st.lists(st.integers(0, 1), min_size=12, max_size=12))
def test_blocks_cover_what_is_not_zero(numbers: list[int]) -> None:
    powers = torch.tensor(numbers, dtype=torch.int16).reshape(3, 4)
    covered = torch.zeros_like(powers)
    for power, block in uniform_blocks(powers, (-2, -1)):
        block_of(covered, block).add_(power)
    assert torch.equal(covered, powers)
