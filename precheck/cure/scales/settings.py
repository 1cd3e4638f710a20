"""How numbers of the config reach operations: found by changing one and tracing again."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from precheck.cure.scales.forms import Form, Kind, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.cure.scales.flow import Flow

_FACTOR = 4.0
"""By which a number is changed; its root, too, is a number that is changed by something."""

_POWERS = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""A number is used as it is, one over it, or its root: ``head_dim ** -0.5``."""

_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigNumber:
    """A number of a config and where it stands."""

    path: tuple[str, ...]
    """``("text_config", "rms_norm_eps")``."""
    value: float

    @property
    def name(self) -> str:
        """As messages spell it."""
        return ".".join(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether it may be a size or a count."""
        return type(self.value) is int

    @property
    def num_halvings(self) -> int:
        """How often a whole number can be halved."""
        value = int(self.value)
        return (value & -value).bit_length() - 1

    def changed(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """A copy of the config in which this number is another."""
        return self.set(config, type(self.value)(self.value * _FACTOR))

    def times(self, power: int) -> float:
        """The number times a power of two; whole if it was and can be."""
        value = self.value * 2.0**power
        return int(value) if self.is_whole and value.is_integer() else value

    def set(self, config: PreTrainedConfig, value: float) -> PreTrainedConfig:
        """A copy of the config with this value for the number."""
        twin = copy.deepcopy(config)
        holder: Any = twin
        for part in self.path[:-1]:
            holder = getattr(holder, part)
        setattr(holder, self.path[-1], value)
        return twin


def config_numbers(
    config: PreTrainedConfig, *, path: tuple[str, ...] = ()
) -> Iterator[ConfigNumber]:
    """The numbers in a config and its parts that are not 0."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from config_numbers(value, path=(*path, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            is_usable = value != 0 and math.isfinite(value) and name[0] != "_"
            if is_usable and not name.endswith("_id"):
                yield ConfigNumber(path=(*path, name), value=value)


def find_settings(flow: Flow, changed: Mapping[ConfigNumber, Flow]) -> dict[int, Form]:
    """How the numbers of an operation follow from the config, by index of the operation.

    A number that is used as its root has to change by an even power: its unknown counts twice.

    Args:
        flow: as the model is.
        changed: traces with one number changed; where one took another way nothing is known.
    """
    found: dict[int, Form] = {}
    clashing: set[int] = set()
    for number, other in changed.items():
        uses = _uses(flow, other)
        step = 2 if any(abs(power) < 1 for power in uses.values()) else 1
        least = -(number.num_halvings // step) if number.is_whole else None
        unknown = Unknown(kind=Kind.SETTING, name=number.name, step=step, least=least)
        clashing |= uses.keys() & found.keys()
        found |= {index: Form.of(unknown).times(power * step) for index, power in uses.items()}
    return {index: form for index, form in found.items() if index not in clashing}


def _uses(flow: Flow, other: Flow) -> dict[int, float]:
    """The power to which a number goes into each operation that uses it; none where unclear."""
    if _way(flow) != _way(other):
        return {}
    found: dict[int, float] = {}
    for index, (op, twin) in enumerate(zip(flow.ops, other.ops, strict=True)):
        ratios = {
            after / before
            for before, after in zip(op.scalars, twin.scalars, strict=False)
            if before and after != before
        }
        if not ratios:
            continue
        powers = {_power(each) for each in ratios}
        if len(powers) > 1 or None in powers:
            return {}
        found[index] = powers.pop() or 0.0
    return found


def _way(flow: Flow) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Which operations ran, on tensors of which shapes."""
    return [(op.name, [each.shape for each in op.inputs]) for op in flow.ops]


def _power(ratio: float) -> float | None:
    if ratio <= 0:
        return None
    power = math.log(ratio) / math.log(_FACTOR)
    return next((known for known in _POWERS if abs(power - known) < _TOLERANCE), None)
