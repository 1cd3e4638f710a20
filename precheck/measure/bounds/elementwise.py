"""Sums, products, powers and roots, one element at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds import norms
from precheck.measure.bounds.forms import (
    MASK,
    Below,
    Image,
    Known,
    Masked,
    Pair,
    Rotated,
    Statistic,
    Turned,
    Wave,
)
from precheck.measure.bounds.pairs import pair_bound
from precheck.measure.bounds.rounding import gamma, unit_roundoff
from precheck.measure.bounds.step import finite

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.bounds.forms import Form
    from precheck.measure.bounds.step import Step


def add(step: Step) -> Known:
    """``a + alpha * b``."""
    alpha = step.number(2, "alpha", 1.0)
    assert alpha is not None  # noqa: S101  it has a default
    return _sum(step, step.args[0], step.args[1], alpha)


def subtract(step: Step) -> Known:
    """``a - alpha * b``."""
    alpha = step.number(2, "alpha", 1.0)
    assert alpha is not None  # noqa: S101  it has a default
    return _sum(step, step.args[0], step.args[1], -alpha)


def reverse_subtract(step: Step) -> Known:
    """``b - alpha * a``; one minus a truth value is a truth value."""
    tensor = step.args[0]
    if isinstance(tensor, Known) and tensor.is_binary and step.args[1] == 1:
        return replace(tensor, magnitudes=tensor.bound, numbers=None, identity=object())
    return _sum(step, step.args[1], tensor, -(step.number(2, "alpha", 1.0) or 1.0))


def _sum(step: Step, first: object, second: object, alpha: float) -> Known:
    if not isinstance(first, Known):
        first, second, alpha, sign = second, first, 1.0, alpha
        assert isinstance(first, Known)  # noqa: S101  one of both is a tensor
        first = scaled(first.expanded(step.shape), sign)
    if not isinstance(second, Known):
        return _shifted(step, first.expanded(step.shape), alpha * as_float(second))
    first, second = first.expanded(step.shape), second.expanded(step.shape)
    bound = first.bound + abs(alpha) * second.bound
    if isinstance(first.form, Masked) or isinstance(second.form, Masked):
        return Known(magnitudes=bound, form=Masked())
    if isinstance(first.form, Turned) and isinstance(second.form, Turned):
        return _rotated(first.form, second.form, alpha, bound)
    for one, other, sign in ((first, second, alpha), (second, first, 1.0)):
        if isinstance(one.form, Image) and other.numbers is not None:
            own = 1.0 if one is first else alpha
            image = one.form.times(own)
            image = replace(image, offset=image.offset + sign * other.numbers.double())
            return Known(magnitudes=torch.minimum(image.bound, bound), form=image)
    return Known(magnitudes=bound, is_nonnegative=_are_nonnegative(first, second) and alpha > 0)


def _are_nonnegative(*tensors: Known) -> bool:
    return all(tensor.is_nonnegative for tensor in tensors)


def as_float(number: object) -> float:
    """A number among the arguments of an operation; NaN for anything else."""
    return float(number) if isinstance(number, int | float) else math.nan


def _shifted(step: Step, tensor: Known, shift: float) -> Known:
    """Plus a number: an epsilon, or the 1 of ``1 + w``."""
    bound = finite(tensor.bound + abs(shift))
    form = tensor.form
    if isinstance(form, Statistic) and form.num_elements and shift > 0:
        return Known(
            magnitudes=bound, form=norms.with_epsilon(step, form, shift), is_nonnegative=True
        )
    if isinstance(form, Image) and math.isfinite(shift):
        image = replace(form, offset=form.offset + shift)
        return Known(magnitudes=image.bound, form=image)
    if isinstance(form, Masked):
        return Known(magnitudes=bound, form=form)
    return Known(magnitudes=bound, is_nonnegative=tensor.is_nonnegative and shift >= 0)


def _rotated(first: Turned, second: Turned, alpha: float, bound: Tensor) -> Known:
    """``x cos + y sin``: no more than the norm of ``(x, y)``."""
    cosine, sine = (second, first) if first.is_sine else (first, second)
    is_rotation = (
        first.is_sine != second.is_sine
        and abs(alpha) == 1
        and cosine.image.shares_vectors(sine.image)
        and cosine.image.rows is sine.image.rows
        and torch.equal(cosine.angle, sine.angle)
    )
    if not is_rotation:
        return Known(magnitudes=bound)
    images = [first.image, second.image.times(alpha)]
    images = [images[1], images[0]] if first.is_sine else images
    clean = [replace(image, error=torch.zeros_like(image.error)) for image in images]
    error = images[0].error + images[1].error
    form = Rotated(first=clean[0], second=clean[1], angle=cosine.angle, error=error)
    return Known(magnitudes=torch.minimum(bound, rotated_bound(form)), form=form)


def rotated_bound(form: Rotated) -> Tensor:
    """The norm of each pair, and what its rounding adds."""
    first, second = form.first.bound, form.second.bound
    return torch.hypot(first, second) * (1 + 2.0**-40) + form.error


def multiply(step: Step) -> Known | None:
    """``a * b``."""
    first, second = step.args[:2]
    if len(step.known) > 1 and any(isinstance(one.form, Masked) for one in step.known):
        return None
    if not isinstance(first, Known):
        first, second = second, first
    assert isinstance(first, Known)  # noqa: S101  one of both is a tensor
    if not isinstance(second, Known):
        return _times_number(first.expanded(step.shape), as_float(second))
    normed = _normalised(step, first, second) or _normalised(step, second, first)
    if normed is not None:
        return normed
    if first.identity is second.identity:
        return _square(step, first)
    pair = [first.expanded(step.shape), second.expanded(step.shape)]
    return _product(*pair) or _product(*reversed(pair)) or _by_bounds(*pair)


def _by_bounds(first: Known, second: Known) -> Known:
    bound = first.bound * second.bound
    return Known(magnitudes=finite(bound), is_nonnegative=_are_nonnegative(first, second))


def _times_number(tensor: Known, number: float) -> Known:
    if tensor.is_binary and number <= MASK:
        return Known(magnitudes=torch.zeros_like(tensor.bound), form=Masked())
    return scaled(tensor, number)


def scaled(tensor: Known, factor: float) -> Known:
    """A tensor times a number."""
    form = tensor.form
    bound = finite(tensor.bound * abs(factor))
    is_nonnegative = tensor.is_nonnegative and factor >= 0
    if isinstance(form, Image | Rotated):
        form = form.times(factor)
    elif isinstance(form, Below):
        form = Below(image=form.image.times(factor))
    elif isinstance(form, Pair):
        form = replace(form, first=form.first.times(factor), error=form.error * abs(factor))
    elif isinstance(form, Wave):
        form = replace(form, factor=form.factor * factor)
    elif not isinstance(form, Masked):
        form = None
    return Known(magnitudes=bound, form=form, is_nonnegative=is_nonnegative)


def _normalised(step: Step, tensor: Known, other: Known) -> Known | None:
    """``x`` times its own inverse root of the mean of squares."""
    form = other.form
    if not isinstance(form, Statistic) or form.power != -1 or form.of is not tensor.identity:
        return None
    return _of_own_statistic(step, tensor, form, other)


def _of_own_statistic(step: Step, tensor: Known, form: Statistic, other: Known) -> Known | None:
    shape, own = other.shape, tensor.shape
    if len(shape) != len(own) or own != tuple(step.shape):
        return None
    reduced = [size for size, kept in zip(own, shape, strict=True) if kept == 1]
    if math.prod(reduced) != form.num_elements or any(
        kept not in {1, size} for size, kept in zip(own, shape, strict=True)
    ):
        return None
    return norms.normalised(step, tensor, form, shape)


def _square(step: Step, tensor: Known) -> Known:
    """``x * x``, or ``x ** 2``."""
    bound = tensor.bound.square()
    image = tensor.image
    if image is not None and isinstance(tensor.form, Below):
        form = Pair(first=image, second=image, error=torch.zeros_like(bound))
        bound = torch.minimum(bound, pair_bound(image, image))
        return Known(magnitudes=bound, form=form, is_nonnegative=True)
    return Known(magnitudes=bound, form=norms.squared(step, tensor), is_nonnegative=True)


def _product(tensor: Known, other: Known) -> Known | None:
    """Products that keep a form, tried both ways round."""
    bound = finite(tensor.bound * other.bound)
    if isinstance(other.form, Wave) and isinstance(tensor.form, Image):
        image = tensor.form.times(other.form.factor)
        turned = Turned(image=image, angle=other.form.angle, is_sine=other.form.is_sine)
        return Known(magnitudes=bound, form=turned)
    form = None if other.numbers is None else _times_numbers(tensor.form, other.numbers)
    if form is None and bool(other.bound.isfinite().all()):
        form = _times_bounded(tensor, other)
    if isinstance(form, Pair) and not isinstance(tensor.form, Pair):
        bound = torch.minimum(bound, pair_bound(form.first, form.second))
    return None if form is None else Known(magnitudes=bound, form=form)


def _times_numbers(form: Form | None, numbers: Tensor) -> Form | None:
    """A form times numbers that no input changes."""
    if isinstance(form, Image | Rotated):
        return form.times(numbers.double())
    if isinstance(form, Wave) and numbers.numel():
        first = float(numbers.flatten()[0])
        is_same = bool((numbers == first).all())
        return replace(form, factor=form.factor * first) if is_same else None
    return None


def _times_bounded(tensor: Known, other: Known) -> Form | None:
    """A form times something of which the magnitude is bounded."""
    form, first, second = tensor.form, tensor.image, other.image
    if isinstance(form, Pair):
        return replace(form, first=form.first.times(other.bound), error=form.error * other.bound)
    if first is None:
        return None
    if second is None:
        return Below(image=first.times(other.bound))
    if first.shares_vectors(second):
        return Pair(first=first, second=second, error=0 * first.error)
    return None


def divide(step: Step) -> Known | None:
    """``a / b``."""
    first, second = step.args[:2]
    if isinstance(first, Known) and not isinstance(second, Known):
        number = as_float(second)
        return scaled(first.expanded(step.shape), 1.0 / number) if number else None
    if not isinstance(first, Known) or not isinstance(second, Known):
        return None
    form = second.form
    if isinstance(form, Statistic) and form.power == 1 and form.of is first.identity:
        return _of_own_statistic(step, first, form, second)
    if second.share_of is first.identity:  # by the sum of its row
        lost = gamma(first.shape[-1], step.sums_in) + 4 * unit_roundoff(step.dtype)
        return step.bounded(1.0 + lost, is_nonnegative=True)
    if second.numbers is None or bool((second.numbers == 0).any()):
        return None
    inverse = Known(magnitudes=1 / second.bound, numbers=1 / second.numbers.double())
    pair = [first.expanded(step.shape), inverse.expanded(step.shape)]
    return _product(*pair) or _by_bounds(*pair)


def power(step: Step) -> Known | None:
    """``x ** n``."""
    tensor, exponent = step.args[:2]
    if not isinstance(tensor, Known) or isinstance(exponent, Known):
        return None
    number = as_float(exponent)
    if number == 2:  # noqa: PLR2004  a square
        return _square(step, tensor)
    form = tensor.form
    if isinstance(form, Statistic) and abs(number) == 0.5:  # noqa: PLR2004  a root
        return _root(step, tensor, 1.0 if number > 0 else -1.0)
    if not 0 <= number < math.inf or (number != int(number) and not tensor.is_nonnegative):
        return None
    return Known(magnitudes=tensor.bound.pow(number), is_nonnegative=tensor.is_nonnegative)


def square_root(step: Step) -> Known | None:
    """``sqrt(x)``; NaN where ``x`` may be negative."""
    tensor = step.known[0]
    return _root(step, tensor, 1.0) if tensor.is_nonnegative else None


def inverse_root(step: Step) -> Known | None:
    """``1 / sqrt(x)``."""
    tensor = step.known[0]
    return _root(step, tensor, -1.0) if tensor.is_nonnegative else None


def _root(step: Step, tensor: Known, power: float) -> Known:
    form = tensor.form
    if not isinstance(form, Statistic):
        bound = tensor.bound.sqrt() if power > 0 else torch.full_like(tensor.bound, torch.inf)
        return Known(magnitudes=bound, is_nonnegative=True)
    least = max(form.epsilon - form.lost, 0.0)
    bound = tensor.bound.sqrt()
    if power < 0:
        bound = torch.full_like(bound, 1 / math.sqrt(least) if least > 0 else math.inf)
    return Known(magnitudes=bound, form=norms.rooted(step, form, power), is_nonnegative=True)


def reciprocal(step: Step) -> Known | None:
    """``1 / x`` of the root of a mean of squares."""
    tensor = step.known[0]
    form = tensor.form
    if not isinstance(form, Statistic) or form.power != 1:
        return None
    least = max(form.epsilon - form.lost, 0.0)
    bound = 1 / math.sqrt(least) if least > 0 else math.inf
    return step.bounded(bound, form=norms.rooted(step, form, -1.0), is_nonnegative=True)
