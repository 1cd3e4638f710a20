"""Which parameters are loaded and dropped together, so that memory stays within its limit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeGuard

from torch import nn

from precheck.checkpoint.architecture import token_embedding
from precheck.errors import MemoryExhaustedError
from precheck.measure.models.split_head import SplitLinear, parts_of
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.models.conversion import Conversion
    from precheck.measure.models.streaming.stored_parameters import StoredParameters


class ReadMode(Enum):
    """How much of a load unit's largest parameter is in memory at a time."""

    WHOLE = auto()
    ROWS = auto()
    """Of an embedding, the rows of the batch's tokens."""
    PARTS = auto()
    """Of a head, a part of the vocabulary at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadUnit:
    """A module whose parameters are loaded and dropped together.

    Tied parameters have several names; here they go by the first one.
    """

    module: str
    read_mode: ReadMode
    is_whole_unit: bool
    """Whether the module is a unit of the architecture, not a part of one."""
    whole: tuple[str, ...]
    """Parameters that are in memory from end to end."""
    conversions: tuple[Conversion, ...]
    """What makes those."""
    large_name: str | None
    """The parameter that is read by rows or parts."""
    large: Conversion | None
    """What makes that one."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The stored tensors that are read from end to end."""
        large = self.large if self.read_mode is ReadMode.PARTS else None
        conversions = self.conversions if large is None else (*self.conversions, large)
        return tuple(name for conversion in conversions for name in conversion.sources)


def plan_load_units(
    parameters: StoredParameters, layout: Architecture, *, limit: int, used: int
) -> tuple[LoadUnit, ...]:
    """The load units of a model in the order its units stand in, as large as the limit allows.

    A unit is loaded as a whole if it fits in one dtype. Where it fits in every dtype at once, no
    parameter is cast twice. A unit that does not fit is split into its modules. Parameters outside
    all load units (owned outside the units, or by a module around smaller ones) have to stay.

    Args:
        parameters: those that have to be read.
        layout: the model's units.
        limit: bytes that the scan may take.
        used: bytes that it takes besides weights.

    Raises:
        MemoryExhaustedError: a module does not fit; says what it needs.
    """
    load_units: list[LoadUnit] = []
    for unit in layout.units:
        names = parameters.names_in(unit.name)
        if not names:
            continue
        read_mode = _read_mode(parameters, unit, names)
        if read_mode is not ReadMode.WHOLE or _largest(parameters, names) <= limit - used:
            load_units.append(
                _load_unit(parameters, unit.name, names, read_mode=read_mode, is_whole_unit=True)
            )
        else:
            load_units += _split(parameters, unit)
    needs = {unit.module: _largest(parameters, unit.whole) for unit in load_units}
    most = max(needs, key=needs.__getitem__, default=None)
    if most is not None and needs[most] > limit - used:
        raise MemoryExhaustedError(
            f"not enough memory: the weights of {most} take {num_bytes(needs[most])}, everything "
            f"else {num_bytes(used)} (allowed {num_bytes(limit)})",
            hint=f"allow {num_bytes(needs[most] + used)} with --max-memory, or use --quick",
        )
    return tuple(load_units)


def outside(load_units: Iterable[LoadUnit], parameters: StoredParameters) -> tuple[str, ...]:
    """Names of the parameters that are in none of the load units."""
    inside = {name for unit in load_units for name in (*unit.whole, unit.large_name)}
    return tuple(name for name in parameters.conversion_of if name not in inside)


def _load_unit(
    parameters: StoredParameters,
    module: str,
    names: tuple[str, ...],
    *,
    read_mode: ReadMode,
    is_whole_unit: bool,
) -> LoadUnit:
    """The load unit of these parameters; a large one is ``module``'s own weight."""
    conversion_of = parameters.conversion_of
    large = None if read_mode is ReadMode.WHOLE else parameters.first_names[f"{module}.weight"]
    whole = tuple(name for name in names if name != large)
    return LoadUnit(
        module=module,
        read_mode=read_mode,
        is_whole_unit=is_whole_unit,
        whole=whole,
        conversions=tuple(dict.fromkeys(conversion_of[name] for name in whole)),
        large_name=large,
        large=None if large is None else conversion_of[large],
    )


def _largest(parameters: StoredParameters, names: tuple[str, ...]) -> int:
    """Bytes that parameters need in the dtype that needs most."""
    return max(parameters.num_bytes(names, [dtype]) for dtype in parameters.dtypes)


def _read_mode(parameters: StoredParameters, unit: Unit, names: tuple[str, ...]) -> ReadMode:
    module = parameters.model.get_submodule(unit.name)
    weight = parameters.first_names.get(f"{unit.name}.weight")
    if unit.is_block or weight is None or not parameters.is_stored_alone(weight):
        return ReadMode.WHOLE
    if isinstance(module, SplitLinear):
        return ReadMode.PARTS
    is_large = _looks_up(module, parameters) and len(parts_of(*module.weight.shape)) > 1
    return ReadMode.ROWS if is_large and names == (weight,) else ReadMode.WHOLE


def _looks_up(module: nn.Module, parameters: StoredParameters) -> TypeGuard[nn.Embedding]:
    """Whether a module looks rows up by token id; a table of positions may compute its ids."""
    if not isinstance(module, nn.Embedding):
        return False
    return type(module).forward is nn.Embedding.forward or type(module) is type(
        token_embedding(parameters.model)
    )


def _split(parameters: StoredParameters, unit: Unit) -> list[LoadUnit]:
    """A load unit for each module of a unit that has parameters while its submodules have none."""
    load_units: list[LoadUnit] = []
    for name, _ in parameters.model.get_submodule(unit.name).named_modules():
        module = f"{unit.name}.{name}" if name else unit.name
        names = parameters.names_in(module, recurse=False)
        if names and names == parameters.names_in(module):
            load_units.append(
                _load_unit(parameters, module, names, read_mode=ReadMode.WHOLE, is_whole_unit=False)
            )
    return load_units
