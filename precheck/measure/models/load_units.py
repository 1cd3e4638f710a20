"""Which parameters come and go together, so that what is in memory at once stays in bounds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import nn

from precheck.checkpoint.architecture import token_embedding
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import MemoryExhaustedError
from precheck.measure.models.split_head import SplitLinear, parts_of
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.checkpoint.weights import Weights
    from precheck.measure.models.conversion import Conversion
    from precheck.records.precision import Dtype


class ReadMode(Enum):
    """How a piece's parameters are there for a run."""

    WHOLE = auto()
    ROWS = auto()
    """An embedding: the rows of the tokens at hand."""
    PARTS = auto()
    """A head: a part of the vocabulary at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadUnit:
    """A module whose parameters come and go together.

    Parameters go by the first name the model has for them.
    """

    module: str
    read_mode: ReadMode
    is_unit: bool
    """Not a part of one."""
    whole: tuple[str, ...]
    """Parameters that are in memory from end to end."""
    recipes: tuple[Conversion, ...]
    """What makes those."""
    large_name: str | None
    """The parameter that is read by rows or parts."""
    large: Conversion | None
    """What makes that."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The stored tensors that are read from end to end."""
        large = self.large if self.read_mode is ReadMode.PARTS else None
        recipes = self.recipes if large is None else (*self.recipes, large)
        return tuple(name for recipe in recipes for name in recipe.sources)


class StoredParameters:
    """The parameters of a model that have to be read, and what makes each.

    Args:
        model: on ``meta`` what is stored; its other parameters are there to stay.
        recipes: how stored tensors become parameters.
        stored: the checkpoint's tensors; only headers are read.
    """

    def __init__(self, model: nn.Module, recipes: Iterable[Conversion], stored: Weights) -> None:
        self.model = model
        self.dtypes: dict[Dtype, dict[str, torch.dtype]] = {}
        """What each parameter and buffer is in the model of each dtype."""
        self._stored = stored
        self._shapes = {name: each.shape for name, each in model.named_parameters() if each.is_meta}
        first = {id(each): name for name, each in model.named_parameters()}
        everything = dict(model.named_parameters(remove_duplicate=False))
        self.names = {name: first[id(each)] for name, each in everything.items() if each.is_meta}
        """Every name of a streamed parameter, and the first one the model has for it."""
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        self.conversion_of: dict[str, Conversion] = {}
        self.buffers: dict[str, Conversion] = {}
        buffers = {name for name, each in model.named_buffers() if each.is_meta}
        for recipe in recipes:
            for target in _targets(recipe, model, stored):
                name = self.names.get(target)
                # of two tied parameters that are both stored, transformers keeps the tie's source
                if name is not None and (name not in self.conversion_of or target not in tied):
                    self.conversion_of[name] = recipe
                elif target in buffers:
                    self.buffers[target] = recipe

    def names_in(self, module: str, *, recurse: bool = True) -> tuple[str, ...]:
        """StoredParameters parameters of a module, by their first names."""
        holder = self.model.get_submodule(module)
        prefix = f"{module}." if module else ""
        found = (f"{prefix}{name}" for name, _ in holder.named_parameters(recurse=recurse))
        return tuple(dict.fromkeys(self.names[name] for name in found if name in self.names))

    def piece(
        self, module: str, names: tuple[str, ...], *, read_mode: ReadMode, is_unit: bool
    ) -> LoadUnit:
        """The piece of these parameters; what is large in it is ``module``'s own weight."""
        large = None if read_mode is ReadMode.WHOLE else self.names[f"{module}.weight"]
        whole = tuple(name for name in names if name != large)
        return LoadUnit(
            module=module,
            read_mode=read_mode,
            is_unit=is_unit,
            whole=whole,
            recipes=tuple(dict.fromkeys(self.conversion_of[name] for name in whole)),
            large_name=large,
            large=None if large is None else self.conversion_of[large],
        )

    def dtype_of(self, name: str, dtype: Dtype) -> torch.dtype:
        """What a parameter or buffer is in the model of a dtype; by any of its names."""
        return self.dtypes[dtype][name]

    def outside(self, pieces: Iterable[LoadUnit]) -> tuple[str, ...]:
        """Parameters that are in none of the pieces."""
        inside = {name for piece in pieces for name in (*piece.whole, piece.large_name)}
        return tuple(name for name in self.conversion_of if name not in inside)

    def is_plain(self, name: str) -> bool:
        """Whether one stored tensor is the parameter, row for row."""
        return self.conversion_of[name].converter is None

    def num_bytes(self, names: Collection[str], dtypes: Iterable[Dtype]) -> int:
        """Bytes of what is stored of these parameters, and of what each dtype makes of it."""
        recipes = dict.fromkeys(self.conversion_of[name] for name in names)
        sources = {name for recipe in recipes for name in recipe.sources}
        total = sum(self._stored.nbytes(name) for name in sources)
        for each in dtypes:
            for name in names:
                recipe, wanted = self.conversion_of[name], self.dtype_of(name, each)
                kept = recipe.converter is None and self._dtype(recipe.sources[0]) == wanted
                # what is merged is cast first
                copies = 0 if kept else 1 if recipe.converter is None else 2
                total += copies * self._shapes[name].numel() * wanted.itemsize
        return total

    def _dtype(self, source: str) -> torch.dtype:
        found: torch.dtype = torch_dtype(self._stored.dtype(source))
        return found


def plan_load_units(
    streamed: StoredParameters,
    layout: Architecture,
    *,
    limit: int,
    used: int,
) -> tuple[LoadUnit, ...]:
    """The pieces of a model in the order its units stand in, as large as the limit allows.

    A unit is one piece if there is room for it in one dtype; where there is room for all of them
    at once, none is cast twice. A larger one is a piece for each of its modules. What no piece
    holds (parameters owned outside the units, or by a module around smaller pieces) has to stay.

    Args:
        streamed: the parameters.
        layout: the model's units.
        limit: bytes that the scan may take.
        used: bytes that it takes beside weights.

    Raises:
        MemoryExhaustedError: a module does not fit; says what it needs.
    """
    pieces: list[LoadUnit] = []
    for unit in layout.units:
        names = streamed.names_in(unit.name)
        if not names:
            continue
        read_mode = _manner(streamed, unit, names)
        if read_mode is not ReadMode.WHOLE or _largest(streamed, names) <= limit - used:
            pieces.append(streamed.piece(unit.name, names, read_mode=read_mode, is_unit=True))
        else:
            pieces += _modules_of(streamed, unit)
    needs = {piece.module: _largest(streamed, piece.whole) for piece in pieces}
    most = max(needs, key=needs.__getitem__, default=None)
    if most is not None and needs[most] > limit - used:
        raise MemoryExhaustedError(
            f"not enough memory: the weights of {most} take {num_bytes(needs[most])}, everything "
            f"else {num_bytes(used)} (allowed {num_bytes(limit)})",
            hint=f"allow {num_bytes(needs[most] + used)} with --max-memory, or use --quick",
        )
    return tuple(pieces)


def _largest(streamed: StoredParameters, names: tuple[str, ...]) -> int:
    """Bytes that parameters need in the dtype that needs most."""
    return max(streamed.num_bytes(names, [dtype]) for dtype in streamed.dtypes)


def _manner(
    streamed: StoredParameters,
    unit: Unit,
    names: tuple[str, ...],
) -> ReadMode:
    module = streamed.model.get_submodule(unit.name)
    weight = streamed.names.get(f"{unit.name}.weight")
    if unit.is_block or weight is None or not streamed.is_plain(weight):
        return ReadMode.WHOLE
    if isinstance(module, SplitLinear):
        return ReadMode.PARTS
    is_large = len(parts_of(*module.weight.shape)) > 1 if _looks_up(module, streamed) else False
    return ReadMode.ROWS if is_large and names == (weight,) else ReadMode.WHOLE


def _looks_up(module: nn.Module, streamed: StoredParameters) -> TypeGuard[nn.Embedding]:
    """Whether a module takes token ids and gives their rows; tables of positions may count on."""
    if not isinstance(module, nn.Embedding):
        return False
    return type(module).forward is nn.Embedding.forward or type(module) is type(
        token_embedding(streamed.model)
    )


def _modules_of(streamed: StoredParameters, unit: Unit) -> list[LoadUnit]:
    """A piece for each module of a unit that has parameters, and none of them inside it."""
    found: list[LoadUnit] = []
    for name, _ in streamed.model.get_submodule(unit.name).named_modules():
        module = f"{unit.name}.{name}" if name else unit.name
        names = streamed.names_in(module, recurse=False)
        if names and names == streamed.names_in(module):
            found.append(streamed.piece(module, names, read_mode=ReadMode.WHOLE, is_unit=False))
    return found


def _targets(recipe: Conversion, model: nn.Module, stored: Weights) -> tuple[str, ...]:
    """Names of what a recipe makes: asked of the converter, with tensors that hold nothing."""
    if recipe.converter is None:
        return (recipe.target,)
    empty = [
        torch.empty(stored.shape(name), dtype=torch_dtype(stored.dtype(name)), device="meta")
        for name in recipe.sources
    ]
    return tuple(recipe.convert(empty, model))
