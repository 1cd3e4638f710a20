"""Results that several runs have alike: those of one dtype share their weights.

Runs that differ in their attention have the same operations after every norm, which forgets what
came before it. Such a result is bounded once. It is taken over where

- its operation read the very same tensors, taken over themselves, or the same constants;
- its operation is a product, its weight is the same, and so is all that is known of its input;
  vectors of norms correspond one to one;
- it holds a norm's vector, and is equal to that of the other run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.measure.bounds.forms import Image, Known, Named, Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.measure.bounds.forms import Form, Rows
    from precheck.measure.bounds.step import Step


class Result(NamedTuple):
    """What is known of a result."""

    known: Known
    """Given that it is finite."""
    bound: float
    """What its magnitude does not exceed; infinite where nothing is known."""


class SharedResults:
    """What runs of one dtype found in the unit that they are at."""

    def __init__(self) -> None:
        self._unit: str | None = None
        self._found: dict[object, tuple[Step, Result]] = {}
        self._num_named = 0

    def enter(self, unit: str) -> None:
        """Forgets what was found in another unit: its weights leave memory."""
        if unit != self._unit:
            self._unit = unit
            self._found.clear()

    def named(self, shape: tuple[int, ...]) -> Named:
        """Elements that no other tensor of any run has."""
        first, self._num_named = self._num_named, self._num_named + math.prod(shape)
        return Named(element=torch.arange(first, self._num_named).reshape(shape))

    def result(self, step: Step, balls: Balls, compute: Callable[[Step], Result]) -> Result:
        """What is known of a result: that of another run if all that it depends on is equal.

        Args:
            step: the operation.
            balls: of the run, those that it has in common with others.
            compute: bounds it.
        """
        key = (step.op.key, step.place)
        found = self._found.get(key)
        if found is not None and _are_alike(step, found[0], balls):
            return found[1]
        result = compute(step)
        if found is not None and _is_same_vector(step, result, *found, balls):
            return found[1]
        self._found[key] = step, result
        return result


class Balls:
    """Which vectors of a run stand for which vectors of another, one to one."""

    def __init__(self) -> None:
        self._others: dict[object, object] = {}
        self._own: dict[object, object] = {}

    def correspond(self, own: object, other: object) -> bool:
        """Whether both are, or may be from now on, the same vectors."""
        if own is other:  # taken over before
            return True
        if self._others.get(own, other) is not other or self._own.get(other, own) is not own:
            return False
        self._others[own], self._own[other] = other, own
        return True

    def take_over(self, other: object) -> bool:
        """Whether the run has no vectors yet that stand for these: they are its own from now on."""
        return self._own.setdefault(other, other) is other


def _has_weight(step: Step) -> bool:
    """Whether it multiplies one tensor by a matrix of numbers."""
    known = step.known
    return (
        sum(one.numbers is None for one in known) == 1
        and any(one.numbers is not None and one.rank == 2 for one in known)  # noqa: PLR2004
        and step.op.name in _PRODUCTS
    )


_PRODUCTS = frozenset(f"aten.{name}" for name in ("mm", "bmm", "matmul", "linear", "addmm"))


def _are_alike(step: Step, other: Step, balls: Balls) -> bool:
    """Whether an operation reads the same in two runs."""
    return (
        len(step.known) == len(other.known)
        and step.dtype is other.dtype
        and (step.op.func, step.shape, step.grows) == (other.op.func, other.shape, other.grows)
        and step.takes_some_rows == other.takes_some_rows
        and step.rest == other.rest
        and (
            all(map(_is_taken_over, step.known, other.known))
            or (
                _has_weight(step)
                and all(
                    _are_equal(*pair, balls) for pair in zip(step.known, other.known, strict=True)
                )
            )
        )
    )


def _is_taken_over(one: Known, other: Known) -> bool:
    """Whether both are the same tensor, or the same numbers."""
    return one is other or (one.numbers is not None and _are_same(one.numbers, other.numbers))


def _is_same_vector(step: Step, result: Result, other: Step, found: Result, balls: Balls) -> bool:
    """Whether both results are elements of a new vector, and equal."""
    own, theirs = _new_vector(step, result.known), _new_vector(other, found.known)
    return (
        own is not None
        and theirs is not None
        and _has_equal_parts(own, theirs)
        and _are_same(result.known.bound, found.known.bound)
        and result.bound == found.bound
        and result.known.is_nonnegative == found.known.is_nonnegative
        and balls.take_over(theirs.rows.ball)
    )


def _new_vector(step: Step, known: Known) -> Image | None:
    """The form of a result, if it is of a vector that the operation has made."""
    form = known.form
    if not isinstance(form, Image) or form.rows.matrix is not None:
        return None
    read = [one.form.rows.ball for one in step.known if isinstance(one.form, Image)]
    is_read = form.rows.ball in read or known.identity in [one.identity for one in step.known]
    return None if is_read else form


def _are_equal(one: Known, other: Known, balls: Balls) -> bool:
    if one.numbers is not None or other.numbers is not None:
        return _are_same(one.numbers, other.numbers)
    return _are_same(one.bound, other.bound) and _same_form(one.form, other.form, balls)


def _same_form(one: Form | None, other: Form | None, balls: Balls) -> bool:
    """Whether products make the same of both: forms of other kinds count by their bounds only."""
    if isinstance(one, Image) and isinstance(other, Image):
        return _same_image(one, other, balls)
    if isinstance(one, Pair) and isinstance(other, Pair):
        return (
            _are_same(one.error, other.error)
            and _same_image(one.first, other.first, balls)
            and _same_image(one.second, other.second, balls)
        )
    return not isinstance(one, Image | Pair) and not isinstance(other, Image | Pair)


def _same_image(one: Image, other: Image, balls: Balls) -> bool:
    return _has_equal_parts(one, other) and balls.correspond(one.rows.ball, other.rows.ball)


def _has_equal_parts(one: Image, other: Image) -> bool:
    return (
        one.growth == other.growth
        and _same_rows(one.rows, other.rows)
        and all(
            _are_same(getattr(one, name), getattr(other, name))
            for name in ("index", "token", "scale", "offset", "error")
        )
    )


def _same_rows(one: Rows, other: Rows) -> bool:
    numbers = [(rows.size, rows.radius, rows.is_centred, rows.rounding) for rows in (one, other)]
    return one is other or (numbers[0] == numbers[1] and _are_same(one.matrix, other.matrix))


def _are_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    is_same_memory = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    is_same_kind = one.dtype is other.dtype and one.shape == other.shape
    return is_same_kind and (is_same_memory or torch.equal(one, other))
