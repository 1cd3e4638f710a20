"""How a model may be rescaled: unknown powers of two, and what ties them to one another."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a power of two multiplies."""

    WEIGHT = "weight"
    """Rows or columns of a parameter."""
    SHIFTED_WEIGHT = "shifted_weight"
    """A parameter that the model adds a constant to before it multiplies: ``1 + w`` of a norm."""
    SETTING = "setting"
    """A number of the config: an epsilon, a scale, a cap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """One power of two to be chosen."""

    kind: Kind
    name: str
    """Of the parameter, or of the setting: ``text_config.rms_norm_eps``."""
    dim: int = 0
    """Dimension that ``start`` and ``stop`` count along, from the end: -1 for the last."""
    start: int = 0
    stop: int | None = None
    """None for all of it."""
    shift: float = 0.0
    """What the model adds to a shifted weight."""
    step: int = 1
    """2 for a setting of which the model takes the root: it changes by even powers of two."""
    least: int | None = None
    """The smallest exponent; None for any. A whole number stays one."""


@dataclass(frozen=True, slots=True)
class Form:
    """A sum of unknowns, each with a factor: the power of two that something is multiplied by.

    >>> q = Unknown(kind=Kind.WEIGHT, name="q")
    >>> (Form.of(q) + Form.of(q)).times(0.5) == Form.of(q)
    True
    """

    terms: tuple[tuple[Unknown, float], ...] = ()

    @classmethod
    def of(cls, unknown: Unknown) -> Form:
        """The unknown itself."""
        return cls(((unknown, 1.0),))

    def __add__(self, other: Form) -> Form:
        found = dict(self.terms)
        for unknown, factor in other.terms:
            found[unknown] = found.get(unknown, 0.0) + factor
        return Form(tuple((each, factor) for each, factor in found.items() if factor))

    def __sub__(self, other: Form) -> Form:
        return self + other.times(-1.0)

    def times(self, factor: float) -> Form:
        """Every unknown as often."""
        return Form(tuple((each, factor * old) for each, old in self.terms)) if factor else Form()

    def __bool__(self) -> bool:
        return bool(self.terms)

    def value(self, chosen: dict[Unknown, int]) -> float:
        """What it is where the unknowns are known; those that are not are 0."""
        return sum(factor * chosen.get(each, 0) for each, factor in self.terms)


NOTHING = Form()
"""Multiplied by 1: constants, and what a softmax gives."""


class Reason(StrEnum):
    """Why an equation has to hold."""

    ALIKE = "alike"
    """What is added, joined or compared has to be scaled alike."""
    NOT_LINEAR = "not_linear"
    """The operation does not hand a factor on."""
    CLAMP = "clamp"
    """It cuts off at a constant."""
    CONSTANT = "constant"
    """A constant is added that is not scaled."""
    EPSILON = "epsilon"
    """The epsilon of a norm is to be scaled with what it is added to."""
    RESULT = "result"
    """The logits are to stay what they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """A form that has to be 0, and the operation that demands it."""

    form: Form
    reason: Reason
    module: str
    op: str
    source: str
    """Base name of the file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """An operation whose result is stored in the target dtype, and how it is scaled."""

    form: Form
    key: tuple[str, str, int]
    """What matches it in a run: module, operation, how often before."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """Everything that is known of how a model may be rescaled."""

    equations: tuple[Equation, ...]
    scaled: tuple[Scaled, ...]
