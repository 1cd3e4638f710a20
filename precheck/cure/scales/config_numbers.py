"""How numbers of the config reach operations: change one, trace again, compare the operations."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from precheck.cure.scales.forms import Form, Kind, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.measure.trace.flow import Flow

_FACTOR = 4.0
"""A number is multiplied by this: its square root then changes too, and exactly."""

_POWERS = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""Powers in which a number may be used: ``head_dim ** -0.5``."""

_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigNumber:
    """A number of a config and its place there."""

    path: tuple[str, ...]
    """``("text_config", "rms_norm_eps")``."""
    value: float

    @property
    def name(self) -> str:
        """As messages spell it."""
        return ".".join(self.path)

    @property
    def is_whole(self) -> bool:
        """Whether it is an integer, which may be a size or a count."""
        return type(self.value) is int

    @property
    def num_halvings(self) -> int:
        """How often an integer can be halved and stays one."""
        value = int(self.value)
        return (value & -value).bit_length() - 1

    def perturbed(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """A copy of the config in which this number is larger."""
        return self.replaced(config, type(self.value)(self.value * _FACTOR))

    def times(self, power: int) -> float:
        """The number times ``2 ** power``; an integer stays one if it can."""
        value = self.value * 2.0**power
        return int(value) if self.is_whole and value.is_integer() else value

    def replaced(self, config: PreTrainedConfig, value: float) -> PreTrainedConfig:
        """A copy of the config with this value in the number's place."""
        twin = copy.deepcopy(config)
        holder: Any = twin
        for part in self.path[:-1]:
            holder = getattr(holder, part)
        setattr(holder, self.path[-1], value)
        return twin


def config_numbers(
    config: PreTrainedConfig, *, path: tuple[str, ...] = ()
) -> Iterator[ConfigNumber]:
    """The numbers of a config and its nested configs that are finite, not 0, and not token ids."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from config_numbers(value, path=(*path, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            is_usable = value != 0 and math.isfinite(value) and name[0] != "_"
            if is_usable and not name.endswith("_id"):
                yield ConfigNumber(path=(*path, name), value=value)


def find_settings(flow: Flow, changed: Mapping[ConfigNumber, Flow]) -> dict[int, Form]:
    """How the scalar arguments of operations follow from the config, by index of the operation.

    An operation that uses two numbers of the config is left out: its scalars would have to be
    separated.

    Args:
        flow: of the model as it is.
        changed: flows of the model with one number changed. Where other operations ran then, the
            number is not a mere factor, and nothing follows from it.
    """
    forms: dict[int, Form] = {}
    ambiguous: set[int] = set()
    for number, changed_flow in changed.items():
        uses = _powers_by_op(flow, changed_flow)
        # a number that is used as its root changes by even powers: its unknown counts twice
        step = 2 if any(abs(power) < 1 for power in uses.values()) else 1
        least = -(number.num_halvings // step) if number.is_whole else None
        unknown = Unknown(kind=Kind.SETTING, name=number.name, step=step, least=least)
        ambiguous |= uses.keys() & forms.keys()
        forms |= {index: Form.of(unknown).times(power * step) for index, power in uses.items()}
    return {index: form for index, form in forms.items() if index not in ambiguous}


def _powers_by_op(flow: Flow, changed: Flow) -> dict[int, float]:
    """In which power each operation uses the number that was changed; empty where unclear."""
    if _signature(flow) != _signature(changed):
        return {}
    powers: dict[int, float] = {}
    for index, (op, changed_op) in enumerate(zip(flow.ops, changed.ops, strict=True)):
        ratios = {
            after / before
            for before, after in zip(op.scalars, changed_op.scalars, strict=False)
            if before and after != before
        }
        if not ratios:
            continue
        candidates = {_power(ratio) for ratio in ratios}
        if len(candidates) > 1 or None in candidates:
            return {}
        powers[index] = candidates.pop() or 0.0
    return powers


def _signature(flow: Flow) -> list[tuple[str, list[tuple[int, ...]]]]:
    """Which operations ran, on tensors of which shapes."""
    return [(op.name, [value.shape for value in op.inputs]) for op in flow.ops]


def _power(ratio: float) -> float | None:
    if ratio <= 0:
        return None
    exact = math.log(ratio) / math.log(_FACTOR)
    return next((power for power in _POWERS if abs(exact - power) < _TOLERANCE), None)
