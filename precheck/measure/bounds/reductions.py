"""Sums and means along dimensions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds import norms
from precheck.measure.bounds.forms import Known, Statistic
from precheck.measure.bounds.rounding import MOST_KEYS, gamma

if TYPE_CHECKING:
    from precheck.measure.bounds.step import Step


def _dims(step: Step, rank: int) -> tuple[int, ...]:
    given = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim")
    if isinstance(given, int) and not isinstance(given, bool):
        given = [given]
    if not isinstance(given, list | tuple) or not given:
        return tuple(range(rank))
    return tuple(dim % rank for dim in given)


def mean(step: Step) -> Known:
    """No larger than the largest."""
    return _reduce(step, is_mean=True)


def add_up(step: Step) -> Known:
    """No larger than the sum of magnitudes; of a text of any length, unbounded."""
    return _reduce(step, is_mean=False)


def _reduce(step: Step, *, is_mean: bool) -> Known:
    tensor = step.known[0]
    dims = _dims(step, tensor.rank)
    size = math.prod(tensor.shape[dim] for dim in dims)
    grows = bool(step.grows.intersection(dims))
    error = 1 + gamma(1 << 10 if grows else size, step.sums_in)
    form = tensor.form
    if is_mean:
        bound = tensor.bound.amax(dims) * error
    else:
        bound = tensor.bound.sum(dims) * (math.inf if grows else error)
    reduced, is_of_rows = None, not is_mean and dims == (tensor.rank - 1,)
    if isinstance(form, Statistic) and not form.num_elements and not grows:
        reduced = norms.reduced(step, form, is_mean=is_mean, num_elements=size)
    return Known(
        magnitudes=bound.nan_to_num(nan=math.inf, posinf=math.inf).reshape(step.shape),
        form=reduced,
        is_nonnegative=tensor.is_nonnegative,
        share_of=tensor.identity if is_of_rows and tensor.least_largest > 0 else None,
    )


def count(step: Step) -> Known:
    """How many elements fall into each bin: no more than there are, in a text of any length."""
    tensor = step.known[0]
    most = math.prod(tensor.shape) * (MOST_KEYS if step.grows else 1)
    return step.bounded(float(most), is_nonnegative=True)


def vector_norm(step: Step) -> Known | None:
    """The euclidean norm along dimensions."""
    tensor = step.known[0]
    order = step.number(1, "ord", 2.0)
    if order != 2:  # noqa: PLR2004  another norm
        return None
    args = (step.args[0], *step.args[2:])
    given = step.kwargs.get("dim", args[1] if len(args) > 1 else None)
    rank = tensor.rank
    dims = tuple(dim % rank for dim in given) if given else tuple(range(rank))
    size = math.prod(tensor.shape[dim] for dim in dims)
    if step.grows.intersection(dims):
        return None
    bound = torch.linalg.vector_norm(tensor.bound, dim=dims).reshape(step.shape)
    statistic = norms.reduced(step, norms.squared(step, tensor), is_mean=False, num_elements=size)
    form = norms.rooted(step, statistic, 1.0)
    return Known(
        magnitudes=bound * (1 + gamma(size + 1, step.sums_in)), form=form, is_nonnegative=True
    )
