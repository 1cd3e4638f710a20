"""Matrix products with a parameter: what a linear makes of what it is given.

After a norm the result is again linear in the norm's vector ``u``: a form for each lane. Of what
the heads of an attention have mixed, each head has a vector of its own, so their bounds are added.
Of a gated product both factors are forms over the same vector: ``down_proj``, in ``pairs``.

Weights are read in float32, which holds 16-bit ones exactly. What float32 products lose is added
to every bound.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.forms import Image, Known, Pair, Rows
from precheck.measure.bounds.matrices import lengths_of
from precheck.measure.bounds.pairs import paired_product
from precheck.measure.bounds.patterns import at, classes_of, flattened, groups_of, of_group
from precheck.measure.bounds.rounding import OUTWARD, gamma, largest, unit_roundoff
from precheck.measure.bounds.step import finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.measure.bounds.pairs import Refinement

_MOST_WORK = 1 << 34
"""Multiplications that composing two linears may take."""
_ROUNDED_BELOW = 1.0 - 2.0**-6
"""What is so far below the largest value of a 16-bit dtype is still below it once rounded."""
_LEAST = 2.0**-100
"""Smaller bounds are taken for it: products with weights do not underflow in float32."""


def weight_product(
    tensor: Known,
    weight: Tensor,
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    sums_in: torch.dtype,
    refinement: Refinement,
) -> Known:
    """What a product with a parameter comes to, before its result is rounded.

    Args:
        tensor: ``(..., k)``.
        weight: ``(m, k)``, as the run holds it.
        bias: ``(m,)`` or None.
        dtype: of the result; a bias is added to a product that was rounded to it.
        sums_in: what the kernel accumulates in.
        refinement: bounds rows of ``down_proj`` that do not fit once more.

    Returns:
        Of shape ``(..., m)``.
    """
    offset = torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.double()
    shape = (*tensor.shape[:-1], len(weight))
    product = _Product(weight.float(), offset, gamma(weight.shape[1] + 1, sums_in))
    plain = _by_bounds(tensor, product)
    image = tensor.form
    wanted = refinement.wanted(largest(dtype))
    known = plain
    if isinstance(image, Image):
        known = _of_image(image, product, plain)
    elif isinstance(image, Pair) and float(plain.bound.max()) > wanted:
        known = _by_classes(
            plain,
            [image.first, image.second],
            [image.error],
            lambda parts, rest: (
                paired_product(
                    parts[0],
                    parts[1],
                    rest[0],
                    product.weight,
                    product.error,
                    wanted=wanted * _ROUNDED_BELOW - float(offset.abs().max()),
                    refinement=refinement,
                )
                + offset.abs()
            ),
        )
    added = unit_roundoff(dtype) * known.bound
    form = known.form
    if isinstance(form, Image):
        form = replace(form, error=form.error + added)
        form = form.moved(lambda part: part.reshape(shape))
    return replace(known, magnitudes=(known.bound + added).reshape(shape), form=form)


def grouped_product(
    tensor: Known,
    weights: Tensor,
    *,
    dtype: torch.dtype,
    sums_in: torch.dtype,
    refinement: Refinement,
) -> Known:
    """What experts make of their tokens: no more than the worst expert of any token.

    Args:
        tensor: ``(tokens, k)``.
        weights: ``(experts, k, m)``, as the run holds them.
        dtype: of the result.
        sums_in: what the kernel accumulates in.
        refinement: bounds rows that do not fit once more.

    Returns:
        Of shape ``(tokens, m)``.
    """
    bound: Tensor | None = None
    for weight in weights:
        known = weight_product(
            tensor, weight.T, None, dtype=dtype, sums_in=sums_in, refinement=refinement
        )
        bound = known.bound if bound is None else torch.maximum(bound, known.bound)
    assert bound is not None  # noqa: S101  there is an expert
    return Known(magnitudes=bound)


class _Product:
    """A weight in float32, its bias, and the relative error of the run's sums."""

    def __init__(self, weight: Tensor, offset: Tensor, error: float) -> None:
        self.weight, self.offset, self.error = weight, offset, error
        self._magnitudes = weight.abs().T

    def sums(self, vectors: Tensor) -> Tensor:
        """``|w| @ x`` at most, of vectors ``(n, k)`` that are not negative: ``(n, m)``, float64."""
        sums = (vectors.clamp_min(_LEAST).float() @ self._magnitudes).double()
        lost = 2 * gamma(vectors.shape[1] + 4, torch.float32)
        # a weight of 0 times what is unbounded is not a number
        return finite((sums * (1 + lost) + vectors.shape[1] * 2.0**-120) * OUTWARD)


def _by_bounds(tensor: Known, product: _Product) -> Known:
    """``|x| @ |w| + |b|``, for any input."""
    vectors = tensor.bound.reshape(-1, tensor.shape[-1])
    firsts, classes = classes_of(vectors)
    sums = product.sums(vectors[firsts])
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
            return replace(made, magnitudes=torch.minimum(finite(made.bound), plain.bound))
    bounds = torch.stack(
        [_grouped_bound(at(image, place), groups[place], product) for place in firsts]
    )
    return Known(magnitudes=torch.minimum(bounds[classes], plain.bound))


def _linear(images: Image, product: _Product) -> Known | None:
    """Forms over one vector for each token become other forms over it.

    None where that takes too much work.
    """
    image, rows = at(images, 0), images.rows
    weight = product.weight
    if rows.matrix is None:
        matrix = _of_elements(image, weight)
    elif len(weight) * len(image.index) * rows.size > _MOST_WORK:
        return None
    else:
        scaled = weight.double() * image.scale
        matrix = (scaled @ rows.matrix[image.index].double()).float()
    parts = product.sums(torch.stack([image.linear_bound, image.offset.abs(), image.error]))
    sums, constants, inner = parts
    if rows.matrix is None and len(image.index.unique()) == len(image.index):
        # sum |w| |x| of the elements of u themselves: no more than the norm of what they multiply
        sums = images.radius * lengths_of(matrix) * OUTWARD
    uneven = torch.zeros(len(weight), dtype=torch.float64)
    if rows.is_centred and rows.matrix is None:
        mean = matrix.mean(1, keepdim=True, dtype=torch.float64)
        matrix = (matrix - mean).float()
        # |sum u| <= rounding * sum |u| <= rounding * sqrt(d) * |u|
        uneven = mean.squeeze(1).abs() * rows.rounding * math.sqrt(rows.size) * images.radius
    # forms are held in float32
    held = sums * 2.0**-21 + images.radius * rows.size * 2.0**-120
    lost = inner + uneven + held + product.error * (sums + constants + inner)
    count, lanes = len(images.index), len(weight)

    def spread(vector: Tensor) -> Tensor:
        return vector.expand(count, lanes)

    made = Image(
        rows=replace(rows, matrix=matrix),
        growth=images.growth,
        index=spread(torch.arange(lanes)),
        token=images.token[:, :1].expand(count, lanes),
        scale=spread(torch.ones(lanes, dtype=torch.float64)),
        offset=spread(_constants(image, product)),
        error=spread(lost * OUTWARD),
    )
    return Known(magnitudes=made.bound, form=made)


def _of_elements(image: Image, weight: Tensor) -> Tensor:
    """The forms of a product with elements of the vector themselves, ``(m, size)``, float32."""
    if torch.equal(image.index, torch.arange(image.rows.size)):
        return weight * image.scale.float()
    forms = torch.zeros(len(weight), image.rows.size, dtype=torch.float64)
    return forms.index_add_(1, image.index, weight.double() * image.scale).float()


def _grouped_bound(image: Image, groups: Tensor, product: _Product) -> Tensor:
    """Each group of elements has a vector of its own: their bounds are added, ``(m,)``."""
    weight = product.weight.double()
    total = torch.zeros(len(weight), dtype=torch.float64)
    grams: dict[tuple[int, ...], Tensor] = {}
    for group in groups.unique().tolist():
        members = of_group(image, groups, group)
        part = weight[:, (groups == group).nonzero().squeeze(1)] * members.scale
        total += _norms_of_products(members, part, grams) * members.radius
    constants = image.linear_bound + image.offset.abs()
    sums, inner = product.sums(torch.stack([constants, image.error]))
    offset = _constants(image, product).abs()
    bound: Tensor = (total + offset + inner + product.error * (sums + inner)) * OUTWARD
    return bound


def _constants(image: Image, product: _Product) -> Tensor:
    """``w @ offset + b``, ``(m,)``."""
    if not bool(image.offset.any()):
        return product.offset
    return product.weight.double() @ image.offset + product.offset


def _norms_of_products(
    image: Image, scaled: Tensor, grams: dict[tuple[int, ...], Tensor]
) -> Tensor:
    """The norm of each row of ``scaled @ forms``, ``(m,)``, by the Gram matrix of the forms.

    Args:
        image: of one dimension, over one vector.
        scaled: rows of a weight times the image's scale, ``(m, elements)``, float64.
        grams: the Gram matrices that are computed, by their forms: heads share keys and values.
    """
    rows: Rows = image.rows
    if rows.matrix is None:
        matrix = torch.zeros(len(scaled), rows.size, dtype=torch.float64)
        lengths: Tensor = torch.linalg.vector_norm(matrix.index_add_(1, image.index, scaled), dim=1)
        return lengths
    key = tuple(image.index.tolist())
    if key not in grams:
        forms = rows.matrix[image.index].double()
        grams[key] = forms @ forms.T
    gram = grams[key]
    squares = ((scaled @ gram).mul_(scaled)).sum(1)
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
