"""Linear forms over unknown powers of two, and the equations between them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


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
    """The exponent of one power of two that is to be chosen."""

    kind: Kind
    name: str
    """Of the parameter, or of the setting: ``text_config.rms_norm_eps``."""
    part: tuple[tuple[int, int], ...] = ()
    """Of a parameter that is divided: dimension (from the end) and class, for each dimension along
    which it is."""
    shift: float = 0.0
    """The constant that the model adds to a shifted weight."""
    step: int = 1
    """2 for a setting of which the model takes the root: only even powers keep that exact."""
    least: int | None = None
    """The smallest exponent allowed, so that an integer stays one; None: any."""


@dataclass(frozen=True, slots=True)
class Form:
    """A linear form: a sum of unknowns, each with a coefficient.

    Its value is the exponent of the power of two that a tensor is multiplied by.

    >>> q = Unknown(kind=Kind.WEIGHT, name="q")
    >>> (Form.of(q) + Form.of(q)).times(0.5) == Form.of(q)
    True
    """

    terms: tuple[tuple[Unknown, float], ...] = ()

    @classmethod
    def of(cls, unknown: Unknown) -> Form:
        """The form that is just this unknown."""
        return cls(((unknown, 1.0),))

    def __add__(self, other: Form) -> Form:
        coefficients = dict(self.terms)
        for unknown, coefficient in other.terms:
            coefficients[unknown] = coefficients.get(unknown, 0.0) + coefficient
        return Form(tuple(term for term in coefficients.items() if term[1]))

    def __sub__(self, other: Form) -> Form:
        return self + other.times(-1.0)

    def times(self, factor: float) -> Form:
        """The form with every coefficient multiplied by ``factor``."""
        if not factor:
            return Form()
        return Form(tuple((unknown, factor * old) for unknown, old in self.terms))

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def only_weight(self) -> Unknown | None:
        """The unknown of a weight, if the form is just that."""
        if len(self.terms) != 1:
            return None
        unknown, coefficient = self.terms[0]
        return unknown if coefficient == 1.0 and unknown.kind is Kind.WEIGHT else None

    def shifted(self, shift: float) -> Form:
        """The form of a weight, ``only_weight``, after a constant was added to it."""
        return Form(
            tuple(
                (replace(unknown, kind=Kind.SHIFTED_WEIGHT, shift=shift), coefficient)
                for unknown, coefficient in self.terms
            )
        )

    def value(self, exponents: dict[Unknown, int]) -> float:
        """The form's value; unknowns without an exponent count as 0."""
        return sum(factor * exponents.get(unknown, 0) for unknown, factor in self.terms)


UNSCALED = Form()
"""The exponent 0: of constants, and of what a softmax returns."""


class Reason(StrEnum):
    """Why an equation has to hold."""

    EQUAL = "equal"
    """Tensors that are added, joined or compared need the same scale."""
    NOT_LINEAR = "not_linear"
    """A factor on the operation's input is no factor on its result, so there must be none."""
    CLAMP = "clamp"
    """The operation clips at a constant."""
    CONSTANT = "constant"
    """A constant that is not scaled is added."""
    EPSILON = "epsilon"
    """The epsilon of a norm has to be scaled like the variance that it is added to."""
    RESULT = "result"
    """The logits have to stay the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epsilon:
    """A constant that is added to a variance."""

    key: tuple[str, str, int]
    """What matches the operation in a run."""
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Equation:
    """A form that has to be 0, and the operation that requires it."""

    form: Form
    reason: Reason
    module: str
    op: str
    source: str
    """Base name of the file and line."""
    epsilon: Epsilon | None = None
    """Where the form is the exponent of a variance minus that of its epsilon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledResult:
    """The result of an operation that is stored in the target dtype, and its scale."""

    form: Form
    key: tuple[str, str, int]
    """What matches the operation in a run: module, operation, how often it ran there before."""
    source: str
    elements: Tensor | None = field(default=None, compare=False)
    """Which elements have this scale; bool, broadcast to the result. None: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """The equations of a model, and the scale of every result that may leave the dtype's range."""

    equations: tuple[Equation, ...]
    results: tuple[ScaledResult, ...]
    partitions: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    """By parameter and dimension: the class of each position, as ``Unknown.part`` counts them."""

    @property
    def unknowns(self) -> frozenset[Unknown]:
        """All of them."""
        forms = [
            *(equation.form for equation in self.equations),
            *(result.form for result in self.results),
        ]
        return frozenset(unknown for form in forms for unknown, _ in form.terms)
