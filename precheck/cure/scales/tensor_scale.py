"""The scale of a tensor: one power of two for all of it, or one for each of its lanes.

A lane is a set of elements with one exponent: the value rows of a fused matrix and what they give,
or one expert's half of a merged product. Which element belongs to which lane is kept as a tensor of
lane numbers. So the views and copies of a model need no rule each: they are run on these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING

import torch

from precheck.cure.scales.forms import UNSCALED, Form, Kind, Unknown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from precheck.measure.trace.flow import Value

Partitions = dict[tuple[str, int], "Tensor"]
"""By parameter and dimension (from the end): for each position the number of its class, which has
an unknown of its own. What is missing is not divided."""

_WHOLE = torch.zeros((), dtype=torch.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Origin:
    """Which positions of a parameter the elements of a tensor come from.

    To divide the tensor is to divide that parameter.
    """

    parameter: str
    dim: int
    """Of the parameter, from the end."""
    size: int
    """Of the parameter along that dimension."""
    positions: Tensor
    """Along that dimension; int64, broadcast to the tensor."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorScale:
    """The lanes of a tensor, and the exponent of each."""

    forms: tuple[Form, ...]
    lanes: Tensor = field(default_factory=_WHOLE.clone)
    """For each element the index of its form; int64, broadcast to the tensor."""
    origins: tuple[Origin, ...] = ()
    groups: Value | None = None
    """Where each expert's rows end, if the rows are sorted by expert: which these are is not known
    before the model runs, so ``lanes`` has one more dimension in front, of experts."""
    is_zero: bool = False
    """The tensor holds only zeros or mask values, which no factor changes."""
    is_weight: bool = False
    """The tensor is a parameter, or a view or cast of one."""

    @property
    def is_uniform(self) -> bool:
        """Whether one exponent holds for all of it."""
        return len(self.forms) == 1

    @property
    def has_places(self) -> bool:
        """Whether it matters which of its elements is looked at."""
        return bool(self.origins) or not self.is_uniform

    def mapped(self, forms: Sequence[Form]) -> TensorScale:
        """The scale with another form for each lane, of a tensor that is no parameter."""
        return replace(self, forms=tuple(forms), is_weight=False)

    def without_idle_groups(self, rank: int) -> TensorScale:
        """The scale without experts where all have the same.

        Args:
            rank: of the tensor.
        """
        is_idle = self.groups is None or of_rank(self.lanes, rank + 1).shape[0] == 1
        return replace(self, groups=None, lanes=of_rank(self.lanes, rank)) if is_idle else self

    def raised(self, exponent: float) -> TensorScale:
        """The scale of the tensor to the power of ``exponent``."""
        return self.mapped([form.times(exponent) for form in self.forms])


def uniform_scale(form: Form, *, is_zero: bool = False) -> TensorScale:
    """One scale for the whole tensor."""
    return TensorScale(forms=(form,), is_zero=is_zero)


ZEROS = uniform_scale(UNSCALED, is_zero=True)
CONSTANT = uniform_scale(UNSCALED)


def laned(lanes: Tensor, forms: Sequence[Form]) -> TensorScale:
    """A scale without lanes that are not there, or that have the form of another one."""
    present = torch.unique(lanes).tolist()
    distinct = dict.fromkeys(forms[lane] for lane in present)
    if len(distinct) == 1:
        return uniform_scale(next(iter(distinct)))
    numbers = {form: number for number, form in enumerate(distinct)}
    table = torch.zeros(len(forms), dtype=torch.int64)
    for lane in present:
        table[lane] = numbers[forms[lane]]
    return TensorScale(forms=tuple(distinct), lanes=compressed(table[lanes]))


def aligned(scales: Sequence[TensorScale]) -> tuple[Tensor, list[tuple[Form, ...]]]:
    """Lanes so fine that each lies in one lane of every tensor, and the tensors' forms there.

    The tensors are broadcast against one another.
    """
    lanes, forms = _WHOLE, [tuple[Form, ...]()]
    for scale in scales:
        if scale.is_uniform:
            forms = [(*row, scale.forms[0]) for row in forms]
            continue
        count = len(scale.forms)
        codes, lanes = torch.unique(lanes * count + scale.lanes, return_inverse=True)
        forms = [(*forms[code // count], scale.forms[code % count]) for code in codes.tolist()]
    return lanes, forms


def compressed(tensor: Tensor) -> Tensor:
    """The tensor with size 1 along each dimension along which it does not vary."""
    # first where that is known: else all of an expanded tensor would be compared
    for dim, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    for dim, size in enumerate(tensor.shape):
        if size > 1:
            first = tensor.narrow(dim, 0, 1)
            if bool((tensor == first).all()):
                tensor = first
    return tensor


def of_rank(tensor: Tensor, rank: int) -> Tensor:
    """A compressed tensor with leading dimensions of size 1 added or dropped."""
    while tensor.dim() > rank and tensor.shape[0] == 1:
        tensor = tensor.squeeze(0)
    return tensor.reshape((1,) * (rank - tensor.dim()) + tuple(tensor.shape))


def united_origins(first: TensorScale, second: TensorScale) -> tuple[Origin, ...]:
    """The origins of both, each dimension of a parameter once."""
    known = {(origin.parameter, origin.dim) for origin in first.origins}
    others = (o for o in second.origins if (o.parameter, o.dim) not in known)
    return (*first.origins, *others)


def parameter_scale(value: Value, partitions: Partitions) -> TensorScale:
    """The scale of a parameter, with an unknown for each class of its positions."""
    name, rank = value.parameter or "", len(value.shape)
    origins = []
    divided: list[tuple[int, Tensor]] = []
    for dim in range(-rank, 0):
        shape = [-1 if dim == other else 1 for other in range(-rank, 0)]
        size = value.shape[dim]
        positions = torch.arange(size).reshape(shape)
        origins.append(Origin(parameter=name, dim=dim, size=size, positions=positions))
        if (name, dim) in partitions:
            divided.append((dim, partitions[name, dim].reshape(shape)))
    counts = [int(classes.max()) + 1 for _, classes in divided]
    lanes = reduce(
        lambda code, part: code * part[1] + part[0],
        zip((classes for _, classes in divided), counts, strict=True),
        _WHOLE,
    )
    forms = []
    for code in range(int(torch.tensor(counts, dtype=torch.int64).prod())):
        part, rest = [], code
        for (dim, _), count in zip(reversed(divided), reversed(counts), strict=True):
            part.append((dim, rest % count))
            rest //= count
        unknown = Unknown(kind=Kind.WEIGHT, name=name, part=tuple(reversed(part)))
        forms.append(Form.of(unknown))
    return TensorScale(forms=tuple(forms), lanes=lanes, origins=tuple(origins), is_weight=True)
