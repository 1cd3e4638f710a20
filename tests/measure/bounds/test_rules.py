"""Each rule against real values: random weights, inputs that gradients make as bad as they can."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from precheck.measure.bounds.attention import mean_of, vector_norms
from precheck.measure.bounds.forms import Image, Known, Rotated, Rows
from precheck.measure.bounds.matrices import (
    largest_eigenvalue,
    lengths_of,
    spectral_norm,
    weighted_frobenius,
)
from precheck.measure.bounds.pairs import Refinement, pair_bound, paired_product
from precheck.measure.bounds.products import weight_product
from precheck.measure.bounds.rules import rule_of
from precheck.measure.bounds.step import Step
from precheck.measure.trace.flow import FlowOp, Value
from precheck.measure.watch.op_kinds import op_kind

if TYPE_CHECKING:
    from torch import Tensor

SIZE, LANES = 24, 10
SEEDS = range(4)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def image_of(matrix: Tensor, offset: Tensor, *, radius: float) -> Image:
    """One token's forms: a row of the matrix for each element."""
    count = len(matrix)
    rows = Rows(size=matrix.shape[1], radius=radius, matrix=matrix)
    return Image(
        rows=rows,
        index=torch.arange(count),
        token=torch.zeros(count, dtype=torch.int64),
        scale=torch.ones(count, dtype=torch.float64),
        offset=offset,
        error=torch.zeros(count, dtype=torch.float64),
    )


def normed(*, scale: Tensor, offset: Tensor) -> Known:
    """The result of a norm over ``SIZE`` lanes, times a weight and plus a bias."""
    rows = Rows(size=SIZE, radius=SIZE**0.5)
    image = Image(
        rows=rows,
        index=torch.arange(SIZE),
        token=torch.zeros(SIZE, dtype=torch.int64),
        scale=scale,
        offset=offset,
        error=torch.zeros(SIZE, dtype=torch.float64),
    ).moved(lambda part: part.unsqueeze(0))
    return Known(magnitudes=image.bound, form=image)


def worst(function: Any, start: Tensor, *, radius: float, steps: int = 40) -> Tensor:
    """The largest value of each result that gradients find over vectors of a norm."""
    found = function(start * (radius / start.norm())).abs()
    for lane, sign in itertools.product(range(len(found)), (1.0, -1.0)):
        u = (sign * start).requires_grad_()
        for _ in range(steps):
            value = function(u * (radius / u.norm()))[lane].abs()
            (slope,) = torch.autograd.grad(value, u)
            if not float(slope.norm()):
                break
            u = (u / u.norm() + slope / slope.norm()).detach().requires_grad_()
        found[lane] = torch.maximum(found[lane], function(u * (radius / u.norm()))[lane].abs())
    return found.detach()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_linear_after_a_norm_is_bounded_and_the_bound_is_reached(seed: int) -> None:
    weight, bias = drawn(LANES, SIZE, seed=seed), drawn(LANES, seed=seed + 50)
    scale, offset = drawn(SIZE, seed=seed + 1), drawn(SIZE, seed=seed + 2)
    known = weight_product(
        normed(scale=scale, offset=offset),
        weight,
        bias,
        dtype=torch.float64,
        sums_in=torch.float64,
        refinement=Refinement(),
    )
    found = worst(
        lambda u: weight @ (scale * u + offset) + bias, drawn(SIZE, seed=seed), radius=SIZE**0.5
    )
    assert bool((found <= known.bound[0]).all())
    assert float((found / known.bound[0]).median()) > 0.97


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gated_product_is_bounded_and_the_bound_is_reached(seed: int) -> None:
    a, b = drawn(LANES, SIZE, seed=seed), drawn(LANES, SIZE, seed=seed + 1)
    zeros = torch.zeros(LANES, dtype=torch.float64)
    first, second = image_of(a, zeros, radius=5.0), image_of(b, zeros, radius=5.0)
    second = Image(
        rows=Rows(size=SIZE, radius=5.0, matrix=b, ball=first.rows.ball),
        index=second.index,
        token=second.token,
        scale=second.scale,
        offset=zeros,
        error=zeros,
    )
    bound = pair_bound(first, second)
    found = worst(lambda u: (a @ u) * (b @ u), drawn(SIZE, seed=seed + 9), radius=5.0)
    assert bool((found <= bound).all())
    for lane in range(LANES):  # between the directions of both, or of one and against the other
        ahead, aside = a[lane] / a[lane].norm(), b[lane] / b[lane].norm()
        values = [
            float((a[lane] @ u) * (b[lane] @ u))
            for direction in (ahead + aside, ahead - aside)
            for u in [direction * (5.0 / direction.norm())]
        ]
        assert max(map(abs, values)) == pytest.approx(float(bound[lane]), rel=1e-5)


@pytest.mark.parametrize(("minutes", "looseness"), [(0.0, 30), (1.0, 6)])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_down_proj_makes_of_a_gated_product_is_bounded(
    seed: int, minutes: float, looseness: float
) -> None:
    a, b = drawn(LANES, SIZE, seed=seed), drawn(LANES, SIZE, seed=seed + 1)
    a0, b0 = drawn(LANES, seed=seed + 2), drawn(LANES, seed=seed + 3)
    down = drawn(6, LANES, seed=seed + 4)
    bound = product_of_pairs(
        image_of(a, a0, radius=3.0), image_of(b, b0, radius=3.0), down, minutes
    )
    found = worst(
        lambda u: down @ (nn.functional.silu(a @ u + a0) * (b @ u + b0)),
        drawn(SIZE, seed=seed + 9),
        radius=3.0,
    )
    assert bool((found <= bound).all())
    assert float((bound / found).median()) < looseness


@pytest.mark.parametrize("seed", SEEDS)
def test_a_refined_bound_is_reached_where_both_factors_are_large_for_the_same_input(
    seed: int,
) -> None:
    a = drawn(LANES, SIZE, seed=seed)
    down = drawn(6, LANES, seed=seed + 4).abs()
    zeros = torch.zeros(LANES, dtype=torch.float64)
    both = image_of(a, zeros, radius=3.0), image_of(a, zeros, radius=3.0)
    tops = [torch.linalg.eigh((a.T * row) @ a).eigenvectors[:, -1] * 3.0 for row in down]
    found = torch.stack([row @ (a @ u).square() for row, u in zip(down, tops, strict=True)])
    plain, refined = (product_of_pairs(*both, down, minutes) for minutes in (0.0, 1.0))
    assert bool((found <= refined).all())
    torch.testing.assert_close(refined, found, rtol=1e-6, atol=0.0)
    assert float((plain / refined).min()) > 1.05


def test_what_fits_is_not_refined_and_nothing_is_without_time() -> None:
    asked: list[int] = []

    def bound_of(row: int) -> float:
        asked.append(row)
        return 1.0

    bounds = torch.tensor([5.0, 50.0, 8.0, 40.0], dtype=torch.float64)
    refined = Refinement(1.0).refined(bounds, wanted=8.0, bound_of=bound_of)
    assert (asked, refined.tolist()) == ([1, 3], [5.0, 1.0, 8.0, 1.0])
    assert Refinement().refined(bounds, wanted=8.0, bound_of=bound_of) is not None
    assert asked == [1, 3]
    assert (Refinement(1.0).wanted(80.0), Refinement().wanted(80.0)) == (10.0, 80.0)


def product_of_pairs(first: Image, second: Image, down: Tensor, minutes: float) -> Tensor:
    return paired_product(
        first,
        second,
        torch.zeros(len(first.index), dtype=torch.float64),
        down,
        0.0,
        wanted=0.0,
        refinement=Refinement(minutes),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_norms_of_matrices_are_bounded_from_above(seed: int) -> None:
    matrix = drawn(LANES, SIZE, seed=seed) * 10.0 ** (3 * seed - 8)
    exact = float(torch.linalg.matrix_norm(matrix, 2))
    zeros = torch.zeros(LANES, dtype=torch.float64)
    found = spectral_norm(image_of(matrix, zeros, radius=1.0))
    assert exact <= found <= exact * (1 + 1e-5)


def test_a_matrix_with_an_infinite_element_is_unbounded() -> None:
    assert largest_eigenvalue(torch.tensor([[float("inf")]], dtype=torch.float64)) == float("inf")


@pytest.mark.parametrize("scale", [1.0, 1e-6, 300.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_float32_norms_are_above_the_exact_ones_and_hardly_looser(seed: int, scale: float) -> None:
    forms = drawn(900, SIZE, seed=seed) * scale
    weights = drawn(LANES, 900, seed=seed + 1).abs().float()
    gram = (forms @ forms.T).square()
    exact = ((weights.double() @ gram) * weights).sum(1).sqrt()
    found = weighted_frobenius(forms, weights)
    assert bool((found >= exact).all())
    assert float((found / exact).max()) < 1.001
    held = forms.float()
    lengths = torch.linalg.vector_norm(held.double(), dim=1)
    assert bool((lengths_of(held) >= lengths).all())
    assert float((lengths_of(held) / lengths).max()) < 1.001


def test_a_mean_of_values_is_over_other_vectors_than_the_norm_that_they_come_from() -> None:
    """One head: its vectors are as many as those of the norm, and not the same."""
    forms = torch.eye(SIZE)[:LANES]
    rows = Rows(size=SIZE, radius=3.0, matrix=forms)
    zeros = torch.zeros(1, LANES, dtype=torch.float64)
    image = Image(
        rows=rows,
        index=torch.arange(LANES).expand(1, LANES),
        token=torch.zeros(1, LANES, dtype=torch.int64),
        scale=zeros + 1,
        offset=zeros,
        error=zeros,
    )
    values = Known(magnitudes=image.bound, form=image)
    mean = mean_of(values, total=1.0, least=1.0, dtype=torch.float64, queries=(1, LANES)).image
    assert mean is not None
    assert not mean.shares_vectors(image)


def moved(func: Any, *args: Any, known: Known, shape: tuple[int, ...]) -> Known | None:
    """What is known of ``func(tensor, *args)``, where ``known`` is of the tensor."""
    tensor = Value(shape=known.shape, dtype=torch.float32, storage=0)
    output = Value(shape=shape, dtype=torch.float32, storage=1)
    op = FlowOp(
        name=op_kind(func).name,
        func=func,
        is_view=False,
        module="",
        ordinal=0,
        filename="",
        line=0,
        args=(tensor, *args),
        kwargs={},
        inputs=(tensor,),
        outputs=(output,),
    )
    step = Step(op=op, args=(known, *args), kwargs={}, output=output, grows=frozenset())
    rule = rule_of(step)
    return None if rule is None else rule(step)


def test_numbers_that_a_move_puts_beside_its_input_count_too() -> None:
    known = normed(scale=torch.ones(SIZE), offset=torch.zeros(SIZE))
    padded = moved(
        torch.ops.aten.constant_pad_nd.default, [0, 2], -99.0, known=known, shape=(1, SIZE + 2)
    )
    assert padded is not None
    assert padded.bound[0, -2:].tolist() == [99.0, 99.0]
    assert torch.equal(padded.bound[:, :SIZE], known.bound)


def test_numbers_are_put_into_places_that_are_known_and_of_others_nothing_is() -> None:
    known = normed(scale=torch.ones(SIZE), offset=torch.zeros(SIZE))

    def scattered(numbers: Tensor | None) -> Known | None:
        place = Value(shape=(1, 1), dtype=torch.int64, storage=2, constant=numbers)
        scatter = torch.ops.aten.scatter.value
        return moved(scatter, 1, place, -99.0, known=known, shape=(1, SIZE))

    found = scattered(torch.tensor([[3]]))
    assert found is not None
    assert float(found.bound[0, 3]) == 99.0
    assert torch.equal(found.bound[0, 4:], known.bound[0, 4:])
    assert scattered(None) is None


def turned(scale: Tensor, offset: Tensor) -> Known:
    """A normed vector whose halves are turned into one another, a pair of lanes by each angle."""
    half = SIZE // 2
    first = normed(scale=scale, offset=offset).form
    assert isinstance(first, Image)
    sign = torch.ones(SIZE, dtype=torch.float64)
    sign[:half] = -1.0
    second = first.moved(lambda part: part.roll(half, -1))
    second = replace(second, scale=second.scale * sign, offset=second.offset * sign)
    angle = torch.arange(half).repeat(2).reshape(1, SIZE)
    form = Rotated(first=first, second=second, angle=angle, error=first.error)
    return Known(magnitudes=torch.hypot(first.bound, second.bound), form=form)


def test_a_rotation_keeps_the_norm_where_weights_are_zero_too() -> None:
    scale = drawn(SIZE, seed=1)
    scale[[2, 5, 5 + SIZE // 2]] = 0.0  # one lane of a pair, and a whole pair
    offset = torch.zeros(SIZE, dtype=torch.float64)
    found = float(vector_norms(turned(scale, offset), -1))
    assert found == pytest.approx(SIZE**0.5 * float(scale.abs().max()), rel=1e-6)


@pytest.mark.parametrize("part", ["scale", "offset", "angle"])
def test_what_is_no_rotation_is_not_taken_for_one(part: str) -> None:
    """Behind a weight of 0 the other lane of a pair is another one's."""
    scale, offset = drawn(SIZE, seed=1), drawn(SIZE, seed=2)
    scale[2] = 0.0
    whole = turned(scale, offset)
    assert isinstance(whole.form, Rotated)
    plain = float(torch.linalg.vector_norm(whole.bound))
    assert float(vector_norms(whole, -1)) < 0.7 * plain
    changed = whole.form.second
    partner = 2 + SIZE // 2
    if part == "angle":
        form = replace(whole.form, angle=whole.form.angle.clone())
        form.angle[0, partner] += 1
    else:
        place = 2 if part == "scale" else partner
        numbers = getattr(changed, part).clone()
        numbers[0, place] = 9.0
        form = replace(whole.form, second=replace(changed, **{part: numbers}))
    found = float(vector_norms(replace(whole, form=form), -1))
    assert found == pytest.approx(plain, rel=1e-9)
