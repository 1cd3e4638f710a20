"""Matrix products with a parameter: what a linear makes of what it is given.

After a norm the result is again linear in the norm's vector ``u``: a form for each lane. Of what
the heads of an attention have mixed, each head has a vector of its own, so their bounds are added.
Of a gated product both factors are forms over the same vector: ``down_proj``, in ``pairs``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.forms import Image, Known, Pair, Rows
from precheck.measure.bounds.pairs import paired_product
from precheck.measure.bounds.patterns import at, classes_of, flattened, groups_of, of_group
from precheck.measure.bounds.rounding import OUTWARD, gamma, unit_roundoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_MOST_WORK = 1 << 34
"""Multiplications that composing two linears may take."""


def weight_product(
    tensor: Known,
    weight: Tensor,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    sums_in: torch.dtype,
    limit: float,
) -> Known:
    """What a product with a parameter comes to, before its result is rounded.

    Args:
        tensor: ``(..., k)``.
        weight: ``(m, k)``, as the run holds it.
        bias: ``(m,)`` or None.
        dtype: of the result; a bias is added to a product that was rounded to it.
        sums_in: what the kernel accumulates in.
        limit: the largest value of the dtype: what is below needs no better bound.

    Returns:
        Of shape ``(..., m)``.
    """
    weight = weight.to(torch.float64)
    offset = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    shape = (*tensor.shape[:-1], len(weight))
    product = _Product(weight, offset, gamma(weight.shape[1] + 1, sums_in))
    plain = _by_bounds(tensor, product)
    image = tensor.form
    known = plain
    if isinstance(image, Image):
        known = _of_image(image, product, plain)
    elif isinstance(image, Pair) and float(plain.bound.max()) > limit:
        known = _by_classes(
            plain,
            [image.first, image.second],
            [image.error],
            lambda parts, rest: (
                paired_product(parts[0], parts[1], rest[0], weight, product.error) + offset.abs()
            ),
        )
    added = unit_roundoff(dtype) * known.bound
    form = known.form
    if isinstance(form, Image):
        form = replace(form, error=form.error + added)
        form = form.moved(lambda part: part.reshape(shape))
    return replace(known, magnitudes=(known.bound + added).reshape(shape), form=form)


class _Product:
    """A weight, its bias, and the relative error of its sums."""

    def __init__(self, weight: Tensor, offset: Tensor, error: float) -> None:
        self.weight, self.offset, self.error = weight, offset, error
        self.magnitudes = weight.abs()


def _by_bounds(tensor: Known, product: _Product) -> Known:
    """``|x| @ |w| + |b|``, for any input."""
    vectors = tensor.bound.reshape(-1, tensor.shape[-1])
    firsts, classes = classes_of(vectors)
    sums = vectors[firsts] @ product.magnitudes.T
    sums[sums.isnan()] = torch.inf  # a weight of 0 times what is unbounded
    bound = (sums * (1.0 + product.error) + product.offset.abs()) * OUTWARD
    return Known(magnitudes=bound[classes])


def _of_image(image: Image, product: _Product, plain: Known) -> Known:
    """The product with forms over a norm's vectors."""
    image = flattened(image, -1)
    groups = groups_of(image.token)
    firsts, classes = classes_of(
        image.index, groups, image.scale, image.offset, image.error.nan_to_num(posinf=-1.0)
    )
    if len(firsts) == 1 and not bool(groups.any()):
        made = _linear(image, product)
        if made is not None:
            return replace(made, magnitudes=torch.minimum(made.bound, plain.bound))
    bounds = torch.stack(
        [_grouped_bound(at(image, place), groups[place], product) for place in firsts]
    )
    return Known(magnitudes=torch.minimum(bounds[classes], plain.bound))


def _linear(images: Image, product: _Product) -> Known | None:
    """Forms over one vector for each token become other forms over it.

    None where that takes too much work.
    """
    image, rows = at(images, 0), images.rows
    weight, error = product.weight, product.error
    if rows.matrix is None:
        matrix = weight * image.scale
        if not torch.equal(image.index, torch.arange(rows.size)):
            empty = torch.zeros(len(weight), rows.size, dtype=torch.float64)
            matrix = empty.index_add_(1, image.index, matrix)
        # sum |w| |x| of the elements of u themselves: no more than the norm of what they multiply
        sums = images.radius * torch.linalg.vector_norm(matrix, dim=1)
    elif len(weight) * len(image.index) * rows.size > _MOST_WORK:
        return None
    else:
        matrix = (weight * image.scale) @ rows.matrix[image.index]
        sums = product.magnitudes @ image.linear_bound
    uneven = torch.zeros(len(weight), dtype=torch.float64)
    if rows.is_centred and rows.matrix is None:
        mean = matrix.mean(1, keepdim=True)
        matrix = matrix - mean
        # |sum u| <= rounding * sum |u| <= rounding * sqrt(d) * |u|
        uneven = mean.squeeze(1).abs() * rows.rounding * math.sqrt(rows.size) * images.radius
    constants = product.magnitudes @ image.offset.abs()
    inner = product.magnitudes @ image.error
    lost = inner + uneven + error * (sums + constants + inner)
    count, lanes = len(images.index), len(weight)

    def spread(vector: Tensor) -> Tensor:
        return vector.expand(count, lanes)

    made = Image(
        rows=replace(rows, matrix=matrix),
        growth=images.growth,
        index=spread(torch.arange(lanes)),
        token=images.token[:, :1].expand(count, lanes),
        scale=spread(torch.ones(lanes, dtype=torch.float64)),
        offset=spread(weight @ image.offset + product.offset),
        error=spread(lost * OUTWARD),
    )
    return Known(magnitudes=made.bound, form=made)


def _grouped_bound(image: Image, groups: Tensor, product: _Product) -> Tensor:
    """Each group of elements has a vector of its own: their bounds are added, ``(m,)``."""
    weight, magnitudes = product.weight, product.magnitudes
    total = torch.zeros(len(weight), dtype=torch.float64)
    for group in groups.unique().tolist():
        members = of_group(image, groups, group)
        part = weight[:, groups == group]
        total += _norms_of_products(members, part) * members.radius
    inner = magnitudes @ image.error
    sums = magnitudes @ (image.linear_bound + image.offset.abs())
    offset = (weight @ image.offset + product.offset).abs()
    return (total + offset + inner + product.error * (sums + inner)) * OUTWARD


def _norms_of_products(image: Image, weight: Tensor) -> Tensor:
    """The norm of each row of ``weight @ forms``, ``(m,)``, by the Gram matrix of the forms."""
    rows: Rows = image.rows
    scaled = weight * image.scale
    if rows.matrix is None:
        matrix = torch.zeros(len(weight), rows.size, dtype=torch.float64)
        lengths: Tensor = torch.linalg.vector_norm(matrix.index_add_(1, image.index, scaled), dim=1)
        return lengths
    forms = rows.matrix[image.index]
    gram = forms @ forms.T
    squares = ((scaled @ gram) * scaled).sum(1)
    # what cancels in this sum is lost in proportion to its terms
    lost = 2.0**-44 * scaled.square().sum(1) * gram.diagonal().sum()
    return (squares.clamp_min(0.0) + lost).sqrt()


def _by_classes(
    plain: Known,
    images: list[Image],
    errors: list[Tensor],
    bound_of: Callable[[list[Image], list[Tensor]], Tensor],
) -> Known:
    """The bound of each class of vectors, or the plain one where that is smaller."""
    flat = [flattened(image, -1) for image in images]
    rest = [error.reshape(-1, error.shape[-1]) for error in errors]
    groups = [groups_of(image.token) for image in flat]
    if any(bool(group.any()) for group in groups):
        return plain
    parts = [part for image in flat for part in (image.index, image.scale, image.offset)]
    firsts, classes = classes_of(*parts, *(image.error for image in flat), *rest)
    bounds = torch.stack(
        [
            bound_of([at(image, place) for image in flat], [error[place] for error in rest])
            for place in firsts
        ]
    )
    return Known(magnitudes=torch.minimum(bounds[classes], plain.bound))
