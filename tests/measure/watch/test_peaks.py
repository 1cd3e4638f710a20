"""Peaks of the parts of a result, and what an epsilon is of its variances."""

from __future__ import annotations

import pytest
import torch

from precheck.measure.watch.peaks import Peaks, Share, reduced_by_group, reduced_to
from precheck.measure.watch.real_tokens import RealTokens

KEY = ("mlp", "aten.mm", 0)


def test_an_operation_has_the_peak_of_no_other() -> None:
    peaks = Peaks({KEY: 8.0})
    assert peaks.of(KEY) == 8.0
    assert peaks.of(("mlp", "aten.mm", 1)) == 0.0


def test_a_part_has_its_own_peak_and_never_more_than_the_whole() -> None:
    peaks = Peaks({KEY: 8.0}, {KEY: torch.tensor([[8.0, 1.0, 9.0]])})
    for elements, peak in (([1, 0, 0], 8.0), ([0, 1, 0], 1.0), ([0, 0, 1], 8.0)):
        assert peaks.of(KEY, torch.tensor([elements]).bool()) == peak
    # measured in another shape: all that is known is the whole
    assert peaks.of(KEY, torch.tensor([True, False])) == 8.0


@pytest.mark.parametrize("shape", [(1, 1, 6), (1, 4, 1), (3, 1, 1), (1, 4, 6), (3, 4, 6)])
def test_a_reduction_is_the_largest_along_the_rest(shape: tuple[int, ...]) -> None:
    output = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    reduced = reduced_to(shape, output, None)
    assert reduced is not None
    assert reduced.shape == shape
    for index in torch.cartesian_prod(*map(torch.arange, (3, 4, 6))).tolist():
        at = tuple(0 if size == 1 else one for size, one in zip(shape, index, strict=True))
        assert reduced[at] >= output[tuple(index)].abs()
    assert set(reduced.flatten().tolist()) <= set(output.abs().flatten().tolist())


def test_other_shapes_are_not_guessed() -> None:
    output = torch.ones(3, 4, 6)
    assert reduced_to((1, 6), output, None) is None
    assert reduced_to((1, 1, 5), output, None) is None
    assert reduced_by_group((2, 1, 5), torch.ones(4, 6), torch.tensor([2, 4])) is None


def test_rows_belong_to_the_expert_before_whose_end_they_are() -> None:
    rows = torch.tensor([[1.0, -2.0], [3.0, 1.0], [5.0, 5.0], [-7.0, 0.0], [99.0, 99.0]])
    ends = torch.tensor([2, 2, 4], dtype=torch.int32)  # the second one gets none; one row is left
    by_column = reduced_by_group((3, 1, 2), rows, ends)
    assert by_column is not None
    assert by_column.tolist() == [[[3.0, 2.0]], [[0.0, 0.0]], [[7.0, 5.0]]]
    whole = reduced_by_group((3, 1, 1), rows, ends)
    assert whole is not None
    assert whole.flatten().tolist() == [3.0, 0.0, 7.0]


@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 4, 5, 3), (8, 5, 3), (10, 3)])
def test_a_mask_marks_what_is_selected(shape: tuple[int, ...]) -> None:
    real = RealTokens(
        num_rows=2, length=5, mask=torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]).bool()
    )
    numbers = torch.arange(1.0, torch.Size(shape).numel() + 1).reshape(shape)
    mask, selected = real.mask_for(numbers), real.select(numbers)
    assert mask is not None
    assert selected is not None
    kept = numbers.where(mask, 0.0)
    assert set(kept[kept > 0].tolist()) == set(selected.flatten().tolist())


def test_without_padding_or_in_another_shape_there_is_no_mask() -> None:
    assert RealTokens(num_rows=2, length=5, mask=None).mask_for(torch.ones(2, 5)) is None
    mask = torch.ones(2, 5, dtype=torch.bool)
    assert RealTokens(num_rows=2, length=5, mask=mask).mask_for(torch.ones(3, 7)) is None


def test_a_share_is_the_mean_over_tokens_that_are_not_zero() -> None:
    share = Share()
    share.add(torch.tensor([2e-6, 1.0, 1e-6]), 1e-6)
    assert share.count == 2
    assert share.mean == pytest.approx((0.5 + 1e-6) / 2)
    assert Share().mean == 0.0
