"""Attention: scores, their softmax, and the mean of values that it makes.

A score is no larger than the norms of its query and its key, for every pair of tokens and every
rotation between them. Rows of a softmax are non-negative and sum to one, up to rounding, so each
head's output is a point between the values of its tokens: again a form over a vector of norm at
most ``sqrt(d)``, a vector for each head and query.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.forms import Image, Known, Rotated, Shares
from precheck.measure.bounds.matrices import spectral_norm
from precheck.measure.bounds.patterns import at, classes_of, flattened, groups_of
from precheck.measure.bounds.rounding import (
    MOST_KEYS,
    OUTWARD,
    gamma,
    half_subnormal,
    unit_roundoff,
)
from precheck.measure.bounds.step import finite

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.bounds.step import Step


def softmax(step: Step) -> Known:
    """Rows that sum to one, but for what rounding adds to each of their elements."""
    size = step.shape[-1]
    dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    bound = torch.ones(step.shape, dtype=torch.float64)
    if dim not in {-1, len(step.shape) - 1}:
        return Known(magnitudes=bound, is_nonnegative=True)
    num_keys = MOST_KEYS if len(step.shape) - 1 in step.grows else size
    lost = share_error(num_keys, step.dtype)
    element = torch.arange(math.prod(step.shape)).reshape(step.shape)
    form = Shares(total=1 + lost, least=1 - lost, element=element, size=size)
    return Known(magnitudes=bound, form=form, is_nonnegative=True)


def share_error(num_keys: int, dtype: torch.dtype) -> float:
    """How far a row of a softmax may sum to something else than one.

    Its sum is computed in float32, in blocks: 2^10 additions on the way of an element at most.
    """
    inner = gamma(min(num_keys, 1 << 10) + 8, torch.float32)
    return inner + 2 * unit_roundoff(dtype) + num_keys * half_subnormal(dtype)


def cast_shares(step: Step, form: Shares) -> Shares:
    """Shares in another dtype, each of them rounded."""
    num_keys = MOST_KEYS if form.size == step.shape[-1] and step.grows else form.size
    lost = form.total * unit_roundoff(step.dtype) + num_keys * half_subnormal(step.dtype)
    return replace(form, total=form.total + lost, least=form.least - lost)


def batched_product(step: Step, first: Known, second: Known) -> Known:
    """``(b, t, k) @ (b, k, s)``: a mean of values, or scores."""
    if isinstance(first.form, Shares):
        least, total = first.form.sums()
        if math.isfinite(total):
            return mean_of(second, total=total, least=least, dtype=step.dtype, queries=step.shape)
    queries, keys = vector_norms(first, -1), vector_norms(second, -2)
    bound = finite(queries.unsqueeze(-1) * keys.unsqueeze(-2))
    size = first.shape[-1]
    grows = len(first.shape) - 1 in step.grows
    if grows:
        return Known(magnitudes=torch.full(step.shape, torch.inf, dtype=torch.float64))
    plain = finite(first.bound @ second.bound)
    bound = torch.minimum(bound, plain) * (1 + gamma(size + 1, step.sums_in)) * OUTWARD
    return Known(magnitudes=bound)


def vector_norms(tensor: Known, dim: int) -> Tensor:
    """The euclidean norm of each vector along ``dim`` at most, of the other dimensions' shape."""
    plain: Tensor = torch.linalg.vector_norm(tensor.bound, dim=dim) * OUTWARD
    form = tensor.form
    if isinstance(form, Rotated):
        vectors, second = flattened(form.first, dim), flattened(form.second, dim)
        angle = form.angle.movedim(dim, -1).reshape(vectors.index.shape)
        error = form.error.movedim(dim, -1).reshape(vectors.index.shape)
        if not _is_rotation(vectors, second, angle):
            return plain
        vectors = replace(vectors, error=error)
    elif isinstance(form, Image):
        vectors = flattened(form, dim)
    else:
        return plain
    if bool(groups_of(vectors.token).any()):
        return plain
    firsts, classes = classes_of(vectors.index, vectors.scale, vectors.offset, vectors.error)
    norms = torch.tensor([_norm(at(vectors, place)) for place in firsts], dtype=torch.float64)
    return torch.minimum(plain, norms[classes].reshape(plain.shape))


def _norm(image: Image) -> float:
    rest = torch.linalg.vector_norm(image.offset) + torch.linalg.vector_norm(image.error)
    return (spectral_norm(image) * image.radius + float(rest)) * OUTWARD


def _is_rotation(first: Image, second: Image, angle: Tensor) -> bool:
    """Whether each vector is its ``first`` elements, turned in pairs or left alone.

    Element j is ``c X_j + d Y_j``, with the cosine c and the sine d of its angle; its partner k,
    the element that begins with what ``Y_j`` is of, has the same angle. Where ``Y_j = s X_k`` and
    ``Y_k = -s X_j``, s being 1 or -1, both squares sum to ``X_j^2 + X_k^2``. An element is a
    multiple and an offset, and either may be 0, as where a norm's weight is.
    """
    alone = (second.scale == 0) & (second.offset == 0)
    partner = (first.index.unsqueeze(1) == second.index.unsqueeze(2)).to(torch.int8)
    has_one = (partner.sum(2) == 1) | alone
    place = partner.argmax(2)

    def of_partner(part: Tensor) -> Tensor:
        return part.gather(1, place)

    is_pair = (of_partner(second.index) == first.index) & (of_partner(angle) == angle)
    numbers = [(first.scale, second.scale), (first.offset, second.offset)]
    for x, y in numbers:
        is_pair &= (of_partner(y).abs() == x.abs()) & (y.abs() == of_partner(x).abs())
    for (x, turned_x), (other, turned) in itertools.product(numbers, repeat=2):
        is_pair &= x * turned == -of_partner(turned_x) * of_partner(other)
    return bool(has_one.all()) and bool((is_pair | alone).all())


def mean_of(
    values: Known, *, total: float, least: float, dtype: torch.dtype, queries: tuple[int, ...]
) -> Known:
    """What shares make of values ``(..., keys, lanes)``: a point between them.

    Args:
        values: of every key.
        total: what the shares sum to at most.
        least: and at least.
        dtype: of the result.
        queries: shape of the result, ``(..., queries, lanes)``.
    """
    # in float32, block by block: shorter sums than a single running one
    lost = gamma(1 << 10, torch.float32) + 2 * unit_roundoff(dtype)
    largest = values.bound.amax(-2, keepdim=True) * total * (1 + lost) * OUTWARD
    known = Known(magnitudes=largest.expand(queries), is_nonnegative=values.is_nonnegative)
    form = values.form
    if not isinstance(form, Image):
        return known
    parts = (form.index, form.scale, form.offset)
    if any(bool((part != part[..., :1, :]).any()) for part in parts):
        return known
    groups = groups_of(form.token.reshape(-1, form.token.shape[-1]))
    if bool(groups.any()):
        return known

    def first(part: Tensor) -> Tensor:
        return part[..., :1, :].expand(queries)

    num_vectors = math.prod(queries[:-1])
    token = torch.arange(num_vectors).reshape(*queries[:-1], 1).expand(queries)
    offset = first(form.offset)
    error = form.error.amax(-2, keepdim=True).expand(queries) * total + lost * largest
    error = error + offset.abs() * max(total - 1, 1 - least)
    image = replace(
        form,
        rows=replace(form.rows, ball=object()),  # the vectors are others now
        growth=form.growth * total,
        index=first(form.index),
        scale=first(form.scale),
        offset=offset,
        token=token,
        error=error * OUTWARD,
    )
    return replace(known, form=image)


def fused(step: Step) -> Known:
    """Fused attention of ``(query, key, value)``, each ``(batch, heads, tokens, lanes)``.

    Its scores and its softmax are computed in float32; the shares may be rounded to the dtype.
    """
    values = step.known[2]
    heads = step.shape[1]
    if values.shape[1] != heads:
        times = heads // values.shape[1]
        values = values.moved(lambda part: part.repeat_interleave(times, dim=1))
    lost = share_error(MOST_KEYS, step.dtype)
    return mean_of(
        values, total=1 + lost, least=1 - lost, dtype=step.dtype, queries=tuple(step.shape)
    )
