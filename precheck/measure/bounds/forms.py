"""What is known of a tensor over all inputs: bounds of its elements, and how they hang together.

Every tensor of the trace has a bound for each of its elements. Some have a form besides: their
elements are linear forms over a vector that a norm has made (``Image``), such forms turned by an
angle (``Rotated``), products of two of them (``Pair``), or statistics of a norm. All parts of a
form have the shape of the tensor, so that views are run on them as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from precheck.measure.bounds.matrices import lengths_of
from precheck.measure.bounds.rounding import OUTWARD

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Move = Callable[[Tensor], Tensor]
    """Moves the elements of a tensor: a view, a copy, a permutation."""


MASK = -1e4
"""A number that code writes, or multiplies truth values by, is a mask at or below it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Linear forms over vectors ``u`` of one norm, one vector for each token.

    ``|u| <= radius`` in the euclidean norm, for every input.
    """

    size: int
    """Elements of ``u``."""
    radius: float
    matrix: Tensor | None = None
    """A form in each row, ``(forms, size)``, float32; None: the elements of ``u`` themselves."""
    is_centred: bool = False
    """The elements of ``u`` summed to 0 before each of them was rounded."""
    rounding: float = 0.0
    """By how much of itself each element was rounded since then."""
    ball: object = field(default_factory=object)
    """The same for all forms over the same vectors."""

    @cached_property
    def lengths(self) -> Tensor:
        """The euclidean norm of each form, ``(forms,)``."""
        if self.matrix is None:
            return torch.ones(self.size, dtype=torch.float64)
        return lengths_of(self.matrix)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Image:
    """Each element is ``scale * (form . u) + offset`` up to ``error``."""

    rows: Rows
    growth: float = 1.0
    """``|u| <= growth * rows.radius``."""
    index: Tensor
    """Which form, int64."""
    token: Tensor
    """Which vector ``u``, int64; elements with the same one are forms over the same vector."""
    scale: Tensor
    offset: Tensor
    error: Tensor

    def moved(self, move: Move) -> Image:
        """The same with its elements elsewhere."""
        return replace(
            self,
            index=move(self.index),
            token=move(self.token),
            scale=move(self.scale),
            offset=move(self.offset),
            error=move(self.error),
        )

    @property
    def radius(self) -> float:
        """What the norm of ``u`` does not exceed."""
        return self.growth * self.rows.radius

    @property
    def linear_bound(self) -> Tensor:
        """``|scale * (form . u)|`` at most."""
        return self.radius * self.scale.abs() * self.rows.lengths[self.index] * OUTWARD

    @property
    def bound(self) -> Tensor:
        """The magnitude of each element at most."""
        return (self.linear_bound + self.offset.abs() + self.error) * OUTWARD

    def times(self, factor: Tensor | float) -> Image:
        """Multiplied, exactly."""
        magnitude = factor.abs() if isinstance(factor, torch.Tensor) else abs(factor)
        return replace(
            self,
            scale=self.scale * factor,
            offset=self.offset * factor,
            error=self.error * magnitude,
        )

    def shares_vectors(self, other: Image) -> bool:
        """Whether each pair of elements is of forms over the same vector."""
        return self.rows.ball is other.rows.ball and torch.equal(self.token, other.token)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Below:
    """The magnitude of each element is at most that of the image's, which is an exact bound."""

    image: Image

    def moved(self, move: Move) -> Below:
        """The same with its elements elsewhere."""
        return Below(image=self.image.moved(move))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """The magnitude of each element is at most that of a product of two, plus ``error``."""

    first: Image
    second: Image
    error: Tensor

    def moved(self, move: Move) -> Pair:
        """The same with its elements elsewhere."""
        return Pair(
            first=self.first.moved(move), second=self.second.moved(move), error=move(self.error)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wave:
    """``factor`` times the cosine or the sine of an angle."""

    angle: Tensor
    """Which angle, int64."""
    is_sine: bool
    factor: float

    def moved(self, move: Move) -> Wave:
        """The same with its elements elsewhere."""
        return replace(self, angle=move(self.angle))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Turned:
    """An image times the cosine or the sine of an angle: one half of a rotation."""

    image: Image
    """Multiplied by the wave's factor."""
    angle: Tensor
    is_sine: bool

    def moved(self, move: Move) -> Turned:
        """The same with its elements elsewhere."""
        return replace(self, image=self.image.moved(move), angle=move(self.angle))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rotated:
    """``cos(angle) * first + sin(angle) * second``, up to ``error``; their own errors are 0."""

    first: Image
    second: Image
    angle: Tensor
    error: Tensor

    def moved(self, move: Move) -> Rotated:
        """The same with its elements elsewhere."""
        return Rotated(
            first=self.first.moved(move),
            second=self.second.moved(move),
            angle=move(self.angle),
            error=move(self.error),
        )

    def times(self, factor: Tensor | float) -> Rotated:
        """Multiplied, exactly."""
        magnitude = factor.abs() if isinstance(factor, torch.Tensor) else abs(factor)
        return replace(
            self,
            first=self.first.times(factor),
            second=self.second.times(factor),
            error=self.error * magnitude,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistic:
    """A step towards the inverse root of a mean of squares, or of a sum of squares."""

    of: object
    """Identity of the tensor that is squared."""
    power: float = 2.0
    """Of its size: 2 of squares, 1 of their root, -1 of the inverse."""
    num_elements: int = 0
    """How many squares were reduced; 0 before they are."""
    radius: float = 0.0
    """The norm of the tensor times the inverse root at most, up to rounding; infinite without an
    epsilon that covers what underflows."""
    lost: float = 0.0
    """What underflow may have taken from it."""
    epsilon: float = 0.0

    def moved(self, _move: Move) -> Statistic:
        """The same: where its elements belong is told by the shapes."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares:
    """Non-negative, and the elements of a row sum to something from ``least`` to ``total``."""

    total: float
    least: float
    element: Tensor
    """Number of each element, int64; those of a row follow one another."""
    size: int
    """Elements of a row."""

    def moved(self, move: Move) -> Shares:
        """The same with its elements elsewhere."""
        return replace(self, element=move(self.element))

    def sums(self) -> tuple[float, float]:
        """The least and the largest sum along the last dimension; infinite where rows are torn."""
        row = self.element // self.size
        in_order = self.element.sort(dim=-1).values
        is_row = bool((row == row[..., :1]).all()) and bool((in_order.diff(dim=-1) > 0).all())
        if not is_row:
            return 0.0, math.inf
        return (self.least if row.shape[-1] == self.size else 0.0), self.total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masked:
    """Some elements are masks instead, of any magnitude: a softmax takes them for zero."""

    def moved(self, _move: Move) -> Masked:
        """The same."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Named:
    """Nothing is known but which elements are the same: the angles of a cosine and a sine."""

    element: Tensor
    """Number of each element, int64."""

    def moved(self, move: Move) -> Named:
        """The same with its elements elsewhere."""
        return Named(element=move(self.element))


Form = Named | Image | Below | Pair | Wave | Turned | Rotated | Statistic | Shares | Masked


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What is known of a tensor, over all inputs of which everything before it is finite."""

    magnitudes: Tensor | None = None
    """``bound``; None for what is constant, whose magnitudes may never be asked for."""
    form: Form | None = None
    numbers: Tensor | None = None
    """Its values, where no input changes them: parameters, and what is computed of them alone."""
    is_nonnegative: bool = False
    is_binary: bool = False
    """Every element is 0 or 1."""
    least_largest: float = 0.0
    """It is not negative, and the largest element of each row is at least this."""
    share_of: object = None
    """Identity of such a tensor, of which this is the sum of each row."""
    identity: object = field(default_factory=object)
    """The same for tensors that hold the same numbers."""

    @cached_property
    def bound(self) -> Tensor:
        """The magnitude of each element at most, float64; infinite where nothing is known."""
        if self.magnitudes is not None:
            return self.magnitudes
        assert self.numbers is not None  # noqa: S101  a constant
        return self.numbers.abs().to(torch.float64)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        part = self.numbers if self.magnitudes is None else self.magnitudes
        return () if part is None else tuple(part.shape)

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def largest_along(self, dims: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
        """The largest magnitude along some dimensions, float64."""
        part = self.numbers if self.magnitudes is None else self.magnitudes
        assert part is not None  # noqa: S101  one of both
        if not dims:
            return self.bound
        low, high = part.amin(dims, keepdim=keepdim), part.amax(dims, keepdim=keepdim)
        return torch.maximum(low.abs(), high.abs()).to(torch.float64)

    @property
    def image(self) -> Image | None:
        """An image that is at least as large in magnitude, element by element."""
        if isinstance(self.form, Below):
            return self.form.image
        return self.form if isinstance(self.form, Image) else None

    def moved(self, move: Move) -> Known:
        """The same with its elements elsewhere."""
        return replace(
            self,
            magnitudes=None if self.magnitudes is None else move(self.magnitudes),
            form=None if self.form is None else self.form.moved(move),
            numbers=None if self.numbers is None else move(self.numbers),
            least_largest=0.0,
            share_of=None,
            identity=object(),
        )

    def expanded(self, shape: tuple[int, ...]) -> Known:
        """The same, broadcast."""
        if self.shape == tuple(shape):
            return self
        return replace(self.moved(lambda tensor: tensor.expand(shape)), identity=self.identity)


_FEW = 1 << 16


def constant(numbers: Tensor) -> Known:
    """A tensor of which the numbers are known."""
    is_nonnegative = numbers.numel() <= _FEW and bool((numbers >= 0).all())
    return Known(numbers=numbers, is_nonnegative=is_nonnegative)
