"""How numbers of the config reach operations: found by changing them and tracing again."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from precheck.records.scaling import Form, Kind, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.probe.flow import Flow

_POWERS = (1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""A number is used as it is, one over it, or its root: ``head_dim ** -0.5``."""

_STEP = 0.0137
"""Each number is changed by another factor, so that the factor tells which it was."""

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


def config_numbers(
    config: PreTrainedConfig, *, path: tuple[str, ...] = ()
) -> Iterator[ConfigNumber]:
    """The fractions in a config and its parts; whole numbers are sizes and counts."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from config_numbers(value, path=(*path, name))
        elif isinstance(value, float) and value and math.isfinite(value) and name[0] != "_":
            yield ConfigNumber(path=(*path, name), value=value)


def with_number(config: PreTrainedConfig, number: ConfigNumber, value: float) -> None:
    """Sets a number of a config."""
    holder: Any = config
    for part in number.path[:-1]:
        holder = getattr(holder, part)
    setattr(holder, number.path[-1], value)


def changed_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy in which every fraction is another."""
    changed = copy.deepcopy(config)
    for index, number in enumerate(config_numbers(config)):
        with_number(changed, number, number.value * _factor(index))
    return changed


def _factor(index: int) -> float:
    return 1.1 + _STEP * index


def find_settings(
    config: PreTrainedConfig, flow: Flow, changed: Flow
) -> dict[tuple[int, int], Form]:
    """How each scalar of the flow follows from the config, by index of operation and of scalar.

    A number that is used as its root has to change by an even power: its unknown counts twice.

    Args:
        config: as the flow was traced.
        flow: the trace.
        changed: the same with ``changed_config``; where it took another way, nothing is known.
    """
    numbers = list(config_numbers(config))
    if [each.name for each in flow.ops] != [each.name for each in changed.ops]:
        return {}
    uses: dict[tuple[int, int], tuple[int, float]] = {}
    for index, (op, other) in enumerate(zip(flow.ops, changed.ops, strict=True)):
        for place, (before, after) in enumerate(zip(op.scalars, other.scalars, strict=False)):
            if before and after != before:
                found = _use(after / before, len(numbers))
                if found is not None:
                    uses[index, place] = found
    rooted = {which for which, power in uses.values() if abs(power) < 1}
    return {
        place: Form.of(_unknown(numbers[which], is_rooted=which in rooted)).times(
            power * (2 if which in rooted else 1)
        )
        for place, (which, power) in uses.items()
    }


def _unknown(number: ConfigNumber, *, is_rooted: bool) -> Unknown:
    return Unknown(kind=Kind.SETTING, name=number.name, step=2 if is_rooted else 1)


def _use(ratio: float, count: int) -> tuple[int, float] | None:
    """Which number changed a scalar by so much, and to which power it went in."""
    if ratio <= 0:
        return None
    for which in range(count):
        power = math.log(ratio) / math.log(_factor(which))
        for known in _POWERS:
            if abs(power - known) < _TOLERANCE:
                return which, known
    return None
