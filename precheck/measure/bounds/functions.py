"""Activations, clamps, casts and choices, one element at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds import norms
from precheck.measure.bounds.elementwise import as_float, scaled
from precheck.measure.bounds.forms import MASK, Below, Known, Masked, Named, Pair, Statistic, Wave

if TYPE_CHECKING:
    from precheck.measure.bounds.forms import Form
    from precheck.measure.bounds.step import Step


def no_larger(step: Step) -> Known:
    """``|f(x)| <= |x|``: silu, gelu, relu."""
    tensor = step.known[0]
    image = tensor.image
    form: Form | None = None if image is None else Below(image=image)
    if step.op.name.removesuffix("_") == "aten.relu" and isinstance(tensor.form, Pair):
        form = tensor.form
    return Known(magnitudes=tensor.bound, form=form, is_nonnegative="relu" in step.op.name)


def clamp(step: Step) -> Known | None:
    """Between two numbers, or above or below one."""
    tensor = step.args[0]
    is_below_only = "max" in step.op.name
    low = None if is_below_only else step.number(1, "min")
    high = step.number(1 if is_below_only else 2, "max")
    if "clamp_min" in step.op.name:
        high = None
    if not isinstance(tensor, Known) or any(isinstance(one, Known) for one in step.args[1:]):
        return None
    form = tensor.form
    if isinstance(form, Statistic) and low and high is None:
        if form.power == 1:
            low = low * low
        return Known(
            magnitudes=tensor.bound.clamp_min(low),
            form=norms.with_epsilon(step, form, low),
            is_nonnegative=True,
        )
    holds_zero = (low is None or low <= 0) and (high is None or high >= 0)
    limits = [abs(one) for one in (low, high) if one is not None]
    bound = tensor.bound
    if len(limits) == 2:  # noqa: PLR2004  both sides
        bound = bound.clamp_max(max(limits))
    if not holds_zero:
        return Known(magnitudes=torch.maximum(bound, torch.full_like(bound, max(limits))))
    below = None if tensor.image is None else Below(image=tensor.image)
    return Known(magnitudes=bound, form=below, is_nonnegative=low is not None and low >= 0)


def at_most_one(step: Step) -> Known:
    """``|f(x)| <= 1``: tanh, sigmoid, erf, signs; tanh and erf are no larger than 1.13 |x|."""
    is_nonnegative = "sigmoid" in step.op.name
    bound = torch.ones(step.shape, dtype=torch.float64)
    return Known(magnitudes=bound, is_nonnegative=is_nonnegative)


def wave(step: Step) -> Known:
    """The cosine or the sine of an angle."""
    form = step.known[0].form
    bound = torch.ones(step.shape, dtype=torch.float64)
    if not isinstance(form, Named):
        return Known(magnitudes=bound)
    return Known(
        magnitudes=bound, form=Wave(angle=form.element, is_sine="sin" in step.op.name, factor=1.0)
    )


def softplus(step: Step) -> Known:
    """``log(1 + exp(x)) <= |x| + log 2``."""
    return Known(magnitudes=step.known[0].bound + math.log(2.0), is_nonnegative=True)


def magnitude(step: Step) -> Known:
    """``|x|``."""
    tensor = step.known[0]
    return Known(
        magnitudes=tensor.bound,
        form=None if tensor.image is None else Below(image=tensor.image),
        is_nonnegative=True,
    )


def negate(step: Step) -> Known:
    """``-x``."""
    return replace(scaled(step.known[0], -1.0), is_nonnegative=False)


def cast(step: Step) -> Known:
    """The same numbers in another dtype; a wider one holds them exactly."""
    tensor = step.known[0]
    form = tensor.form
    if isinstance(form, Statistic):
        form = norms.cast(step, form)
    same = replace(tensor, magnitudes=tensor.bound, form=form, numbers=None)
    if step.is_exact_cast:
        return same
    return replace(same, least_largest=0.0, share_of=None, identity=object())


def larger(step: Step) -> Known | None:
    """The larger or the smaller of two, element by element."""
    first, second = (one.expanded(step.shape) for one in step.known)
    if isinstance(first.form, Masked) or isinstance(second.form, Masked):
        return None
    return Known(
        magnitudes=torch.maximum(first.bound, second.bound),
        is_nonnegative=first.is_nonnegative and second.is_nonnegative,
    )


def choose(step: Step) -> Known:
    """``where`` and ``masked_fill``: an element of one or of the other."""
    tensors = [one for one in step.args if isinstance(one, Known)]
    numbers = [as_float(one) for one in step.args if isinstance(one, int | float)]
    bound = torch.zeros(step.shape, dtype=torch.float64)
    is_masked = any(number <= MASK for number in numbers)
    for number in numbers:
        bound = bound if number <= MASK else bound.clamp_min(abs(number))
    chosen = [*(one.expanded(step.shape) for one in tensors)]
    for one in chosen:
        is_mask = (
            one.numbers is not None and one.numbers.numel() and bool((one.numbers <= MASK).all())
        )
        is_masked = is_masked or bool(is_mask) or isinstance(one.form, Masked)
        bound = bound if is_mask else torch.maximum(bound, one.bound)
    return Known(
        magnitudes=bound,
        form=Masked() if is_masked else _only_form(chosen, numbers),
        is_nonnegative=not is_masked
        and all(one.is_nonnegative for one in chosen)
        and all(number >= 0 for number in numbers),
    )


def _only_form(tensors: list[Known], numbers: list[float]) -> Below | None:
    """That of the one tensor, where the other choice is 0."""
    others = [one for one in tensors if one.numbers is None or bool((one.numbers != 0).any())]
    if any(numbers) or len(others) != 1 or others[0].image is None:
        return None
    return Below(image=others[0].image)
