"""What is known of experts and of the weights that route tokens to them, rule by rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from precheck.measure.bounds.forms import Image, Known, Shares
from precheck.measure.bounds.rounding import MOST_KEYS
from tests.measure.bounds.breaking import by_rule
from tests.measure.bounds.test_rules import SIZE, drawn, normed

if TYPE_CHECKING:
    from torch import Tensor

aten = torch.ops.aten
CAST, EXPERTS_PRODUCT = aten._to_copy.default, aten._grouped_mm.default  # noqa: SLF001  their names
TOKENS, EXPERTS, CHOSEN = 3, 4, 2


def ones(*shape: int) -> Known:
    """Of elements from 0 to 1 nothing more is known."""
    return Known(magnitudes=torch.ones(shape, dtype=torch.float64), is_nonnegative=True)


def routed() -> Known:
    """The result of a softmax over experts."""
    element = torch.arange(TOKENS * EXPERTS).reshape(TOKENS, EXPERTS)
    shares = Shares(total=1.0, least=1.0, element=element, size=EXPERTS)
    return replace(ones(TOKENS, EXPERTS), form=shares)


def chosen(*args: object) -> Known:
    """The weights of the experts of each token."""
    given = args or (CHOSEN,)
    found = by_rule(aten.topk.default, routed(), *given, shape=(TOKENS, CHOSEN))
    assert found is not None
    return found


def added_up(weights: Known, dim: int = -1) -> Known:
    shape = (TOKENS, 1) if dim == -1 else (1, CHOSEN)
    found = by_rule(aten.sum.dim_IntList, weights, [dim], True, shape=shape)
    assert found is not None
    return found


def divided(weights: Known, total: Known) -> float:
    found = by_rule(aten.div.Tensor, weights, total, shape=(TOKENS, CHOSEN))
    return float("inf") if found is None else float(found.bound.max())


def test_weights_divided_by_their_own_sum_are_at_most_one() -> None:
    weights = chosen()
    assert 1.0 <= divided(weights, added_up(weights)) < 1.00001


@pytest.mark.parametrize("args", [(CHOSEN, 0), (CHOSEN, -1, False)], ids=["tokens", "smallest"])
def test_the_largest_weight_may_not_be_among_others(args: tuple[object, ...]) -> None:
    """Along the tokens, or of the smallest ones, all may be 0: their sum divides nothing."""
    weights = chosen(*args)
    assert divided(weights, added_up(weights)) == float("inf")


def test_other_weights_are_not_bounded_by_the_sum() -> None:
    weights = chosen()
    assert divided(ones(TOKENS, CHOSEN), added_up(weights)) == float("inf")
    assert divided(weights, added_up(weights, dim=0)) == float("inf")


def test_a_sum_that_may_be_zero_divides_nothing() -> None:
    weights = ones(TOKENS, CHOSEN)
    assert divided(weights, added_up(weights)) == float("inf")


def test_rounded_weights_are_not_those_that_were_added_up() -> None:
    weights = chosen()
    half = by_rule(CAST, weights, shape=weights.shape, dtype=torch.float16)
    wide = by_rule(CAST, weights, shape=weights.shape, dtype=torch.float64)
    assert half is not None
    assert wide is not None
    assert divided(half, added_up(weights)) == float("inf")
    assert divided(half, added_up(half)) == float("inf")  # all of them may be 0 now
    assert divided(wide, added_up(weights)) < 1.00001


def test_weights_elsewhere_are_other_weights() -> None:
    weights = chosen()
    elsewhere = weights.moved(lambda part: part[:, :1].expand(TOKENS, CHOSEN))
    assert divided(elsewhere, added_up(elsewhere)) == float("inf")
    assert divided(elsewhere, added_up(weights)) == float("inf")


def test_a_token_may_be_any_experts() -> None:
    weights = drawn(EXPERTS, SIZE, SIZE, seed=3)
    scale = torch.tensor([0.1, 3.0, 0.2, 1.0]).reshape(EXPERTS, 1, 1)
    tensor = normed(scale=torch.ones(SIZE), offset=torch.zeros(SIZE))

    def bound(weights: Tensor) -> Tensor:
        found = by_rule(EXPERTS_PRODUCT, tensor, Known(numbers=weights.float()), shape=(1, SIZE))
        assert found is not None
        return found.bound

    each = [bound((weights * scale)[place : place + 1]) for place in range(EXPERTS)]
    assert torch.equal(bound(weights * scale), torch.stack(each).amax(0))
    reached = SIZE**0.5 * torch.linalg.vector_norm((weights * scale).float(), dim=1).amax(0)
    assert bool((bound(weights * scale)[0] >= reached).all())


def test_a_longer_text_sends_more_tokens_to_an_expert() -> None:
    tensor = ones(TOKENS)
    short = by_rule(aten.histc.default, tensor, EXPERTS, shape=(EXPERTS,))
    long = by_rule(aten.histc.default, tensor, EXPERTS, shape=(EXPERTS,), grows=frozenset({0}))
    assert short is not None
    assert long is not None
    assert float(short.bound.max()) == TOKENS
    assert float(long.bound.max()) == TOKENS * MOST_KEYS


def picked(known: Known) -> Known:
    found = by_rule(aten.index.Tensor, known, [None], shape=(5, SIZE))
    assert found is not None
    return found


def tokens_of(known: Known) -> Known:
    """The same for three tokens, each with a vector of its own."""
    image = known.image
    assert image is not None
    rows = image.moved(lambda part: part.expand(TOKENS, SIZE))
    rows = replace(rows, token=torch.arange(TOKENS).unsqueeze(1).expand(TOKENS, SIZE))
    return Known(magnitudes=rows.bound, form=rows)


def test_rows_that_experts_take_are_over_vectors_that_are_not_known() -> None:
    tensor = tokens_of(normed(scale=drawn(SIZE, seed=1), offset=torch.zeros(SIZE)))
    found = picked(tensor)
    assert tensor.image is not None
    assert found.image is not None
    assert not found.image.shares_vectors(tensor.image.moved(lambda part: part[:1].expand(5, SIZE)))
    assert found.image.rows.ball is not tensor.image.rows.ball
    assert found.image.token.unique().numel() == 5
    assert torch.equal(found.bound[0], tensor.bound[0])


def test_rows_that_differ_are_bounded_by_the_largest_alone() -> None:
    tensor = tokens_of(normed(scale=torch.ones(SIZE), offset=torch.zeros(SIZE)))
    image = tensor.image
    assert isinstance(image, Image)
    scale = torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64).unsqueeze(1).expand(TOKENS, SIZE)
    rows = replace(image, scale=scale)
    found = picked(Known(magnitudes=rows.bound, form=rows))
    assert found.form is None
    assert torch.equal(found.bound[0], rows.bound[1])
