"""Small floating-point formats against every number they have, and against torch's own casts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precheck.facts.formats import Element
from precheck.measure.formats.floats import nearest_float

if TYPE_CHECKING:
    from torch import Tensor

TORCH_DTYPES = {
    Element.E4M3: torch.float8_e4m3fn,
    Element.E4M3FNUZ: torch.float8_e4m3fnuz,
    Element.E5M2: torch.float8_e5m2,
}
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""OCP Microscaling Formats 1.0, table 5."""


def every_number_of(element: Element) -> Tensor:
    """All finite numbers of a format, in order, one zero among them, in float64."""
    if element is Element.E2M1:
        positive = torch.tensor(E2M1, dtype=torch.float64)
    else:
        codes = torch.arange(256, dtype=torch.int32).to(torch.uint8)
        positive = codes.view(TORCH_DTYPES[element]).double()
        positive = positive[positive.isfinite() & (positive >= 0)].unique()
    return torch.cat((-positive.flip(0)[:-1], positive))


def every_16_bit_number(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal, the sign of zero included; NaN equals NaN."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one[~one.isnan()].float().view(torch.int32), other[~other.isnan()].float().view(torch.int32)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("element", TORCH_DTYPES)
def test_every_16_bit_number_is_what_torch_casts_it_to(
    element: Element, dtype: torch.dtype
) -> None:
    numbers = every_16_bit_number(dtype).float()
    # clamped: what torch makes of larger numbers depends on its version
    cast = numbers.clamp(-element.max, element.max).to(TORCH_DTYPES[element]).float()
    assert same_bits(nearest_float(numbers, element, saturates=True), cast)


@pytest.mark.parametrize("element", [*TORCH_DTYPES, Element.E2M1])
def test_the_nearest_number_is_taken_and_of_two_the_even_one(element: Element) -> None:
    known = every_number_of(element)
    assert known.max() == element.max
    middles = (known[1:] + known[:-1]) / 2
    between = torch.cat((known, middles))
    around = torch.cat(
        [
            between.float(),
            *(
                torch.nextafter(between.float(), torch.tensor(side))
                for side in (-math.inf, math.inf)
            ),
        ]
    )
    found = nearest_float(around, element, saturates=True).double()
    distances = (around.double()[:, None] - known).abs()
    assert torch.equal((around.double() - found).abs(), distances.min(-1).values)
    # the sign apart, codes count up: a tie goes to the even code
    places = torch.searchsorted(
        known[known >= 0], nearest_float(middles.float(), element, saturates=True).double().abs()
    )
    assert (places % 2 == 0).all()


@pytest.mark.parametrize("element", [*TORCH_DTYPES, Element.E2M1])
def test_its_own_numbers_stay_as_they_are(element: Element) -> None:
    known = every_number_of(element).float()
    assert torch.equal(nearest_float(known, element, saturates=True), known)
    assert torch.equal(nearest_float(known, element, saturates=False), known)


def test_what_is_too_large_is_clipped_or_is_lost() -> None:
    large = torch.tensor([448.0, 464.0, 465.0, 1e30, math.inf, math.nan, -465.0])
    saturated = nearest_float(large, Element.E4M3, saturates=True).tolist()
    assert saturated[:5] == [448.0] * 5
    assert math.isnan(saturated[5])
    assert saturated[6] == -448.0
    lost = nearest_float(large, Element.E4M3, saturates=False)
    assert lost[:2].tolist() == [448.0, 448.0]
    assert lost[2:].isnan().all()
    large = torch.tensor([57344.0, 61439.0, 61440.0, 1e30, math.inf, -math.inf])
    for element, expected in (
        (nearest_float(large, Element.E5M2, saturates=True), [57344.0] * 5 + [-57344.0]),
        (nearest_float(large, Element.E5M2, saturates=False), large.to(torch.float8_e5m2).tolist()),
    ):
        assert element.tolist() == expected


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=20))
@pytest.mark.parametrize("element", [*TORCH_DTYPES, Element.E2M1])
def test_the_order_is_kept(element: Element, values: list[float]) -> None:
    ordered = torch.tensor(sorted(values), dtype=torch.float32)
    stored = nearest_float(ordered, element, saturates=True)
    assert (stored.diff() >= 0).all()
    assert torch.equal(nearest_float(stored, element, saturates=True), stored)


@pytest.mark.parametrize("element", [Element.E4M3, Element.E5M2])
def test_rounding_toward_zero_gives_the_largest_number_that_is_no_larger(element: Element) -> None:
    known = torch.arange(256, dtype=torch.uint8).view(TORCH_DTYPES[element]).float()
    known = known[known.isfinite() & (known >= 0)].unique()
    drawn = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) * 40 - 22
    numbers = drawn.exp2().clamp(max=element.max)
    stored = nearest_float(numbers, element, saturates=True, toward_zero=True)
    below = known[torch.searchsorted(known, numbers, right=True) - 1]
    assert torch.equal(stored, below)
    assert torch.equal(nearest_float(-numbers, element, saturates=True, toward_zero=True), -below)
    differing = stored != nearest_float(numbers, element, saturates=True)
    assert 0.2 < float(differing.float().mean()) < 0.6, "the nearest is another one about as often"
