"""Products with weights that several runs have alike: those of one dtype share their weights.

Runs that differ in their attention have the same products after every norm, which forgets what
came before it. Such a product is bounded once. Its result is taken over where its operation, its
weight and all that is known of its input are equal; vectors of norms correspond one to one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.forms import Image, Pair

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.measure.bounds.forms import Form, Known, Rows
    from precheck.measure.bounds.step import Step


class SharedProducts:
    """What runs of one dtype found in the unit that they are at."""

    def __init__(self) -> None:
        self._unit: str | None = None
        self._found: dict[object, tuple[Step, Known]] = {}

    def enter(self, unit: str) -> None:
        """Forgets what was found in another unit: its weights leave memory."""
        if unit != self._unit:
            self._unit = unit
            self._found.clear()

    def result(self, step: Step, balls: Balls, compute: Callable[[Step], Known]) -> Known:
        """What is known of a result: that of another run if all that it depends on is equal.

        Args:
            step: the operation.
            balls: of the run, those that it has in common with others.
            compute: bounds it.
        """
        if not _has_weight(step):
            return compute(step)
        other, known = self._found.get(step.op.key, (None, None))
        if other is not None and known is not None and _are_alike(step, other, balls):
            return known
        known = compute(step)
        self._found[step.op.key] = step, known
        return known


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
    """Whether a product and its inputs are equal in two runs."""
    pairs = list(zip(step.known, other.known, strict=False))
    return (
        len(step.known) == len(other.known)
        and step.dtype is other.dtype
        and (step.op.func, step.grows, step.place) == (other.op.func, other.grows, other.place)
        and step.op.scalars == other.op.scalars
        and all(_are_equal(one, two, balls) for one, two in pairs)
    )


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
    return (
        one.growth == other.growth
        and _same_rows(one.rows, other.rows)
        and all(
            _are_same(getattr(one, name), getattr(other, name))
            for name in ("index", "token", "scale", "offset", "error")
        )
        and balls.correspond(one.rows.ball, other.rows.ball)
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
