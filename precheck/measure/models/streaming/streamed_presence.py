"""Streamed parameters: put into a model when a module begins, removed when it ends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from precheck.measure.models.split_head import SplitLinear
from precheck.measure.models.streaming.load_units import LoadUnit, ReadMode
from precheck.measure.watch.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.models.streaming.background import BackgroundReader


class _StreamedParameter(NamedTuple):
    """A parameter of a model that is a stand-in while its module does not run."""

    module: nn.Module
    key: str
    name: str
    """The first name that the model has for it."""
    stand_in: nn.Parameter | None


class StreamedPresence:
    """The presence of streamed parameters in one skeleton.

    Args:
        skeleton: its model has stand-ins for the stored parameters.
        reader: reads them.
        load_units: by module.
        permanent: parameters that stay, by name; they are put in now.
        stand_ins: names of the stand-ins by id.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        reader: BackgroundReader,
        *,
        load_units: Mapping[str, LoadUnit],
        permanent: Mapping[str, nn.Parameter],
        stand_ins: Mapping[int, str],
    ) -> None:
        self._skeleton = skeleton
        self._reader = reader
        self._load_units = load_units
        self._stand_ins = stand_ins
        self._streamed = {
            module: self._streamed_in(skeleton.model.get_submodule(module)) for module in load_units
        }
        self.waiting_points = tuple(
            module for module, unit in load_units.items() if not unit.is_whole_unit
        )
        self._padding: dict[str, int | None] = {}
        self._part: nn.Parameter | None = None
        """The part of a head that is in memory."""
        for streamed in self._streamed_in(skeleton.model):
            if streamed.name in permanent:
                is_faulty = reader.is_faulty(streamed.name, skeleton.dtype)
                self._put(streamed, permanent[streamed.name], is_faulty=is_faulty)
                if streamed.stand_in is not None:  # it is freed now, and its id may come back
                    skeleton.parameters.remove(streamed.stand_in)

    def enter(
        self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Puts the parameters of a load unit in."""
        unit = self._load_units.get(module)
        if unit is None:
            return None
        if unit.read_mode is ReadMode.ROWS:
            return self._enter_embedding(unit, args, kwargs)
        parameters = self._reader.fetch(unit, self._skeleton.dtype)
        for streamed in self._streamed[module]:
            if streamed.name in parameters:
                is_faulty = self._reader.is_faulty(streamed.name, self._skeleton.dtype)
                self._put(streamed, parameters[streamed.name], is_faulty=is_faulty)
        if unit.read_mode is ReadMode.PARTS:
            head = self._skeleton.model.get_submodule(module)
            assert isinstance(head, SplitLinear)  # noqa: S101  planned so
            head.read_part = partial(self._read_part, unit)
        return None

    def leave(self, module: str, output: Any) -> None:
        """Removes them."""
        unit = self._load_units.get(module)
        if unit is None:
            return
        for streamed in self._streamed[module]:
            self._remove(streamed)
        for tensor in tensors_in(output):
            self._reader.disown(tensor)  # some modules return a view of a parameter
        owner: Any = self._skeleton.model.get_submodule(module)
        if unit.read_mode is ReadMode.PARTS:
            owner.read_part = None
            self._forget_part()
        elif unit.read_mode is ReadMode.ROWS:
            owner.padding_idx = self._padding.pop(module)

    def _enter_embedding(
        self, unit: LoadUnit, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert unit.large is not None  # noqa: S101  planned so
        embedding: Any = self._skeleton.model.get_submodule(unit.module)
        ids = args[0] if args else next(iter(tensors_in(kwargs)))
        index, rows, is_faulty = self._reader.rows(unit.large, self._skeleton.dtype, ids)
        for streamed in self._streamed[unit.module]:
            self._put(streamed, rows, is_faulty=is_faulty)
        # padding matters for gradients alone, and its row may not be among these
        self._padding[unit.module], embedding.padding_idx = embedding.padding_idx, None
        if args:
            return (index, *args[1:]), kwargs
        return args, {key: index if value is ids else value for key, value in kwargs.items()}

    def _read_part(self, unit: LoadUnit, rows: slice) -> nn.Parameter:
        assert unit.large is not None  # noqa: S101  planned so
        self._forget_part()
        part, is_faulty = self._reader.part(unit.large, self._skeleton.dtype, rows)
        self._part = part
        self._skeleton.parameters.add(part, unit.large_name or "", is_faulty=is_faulty)
        return part

    def _forget_part(self) -> None:
        if self._part is not None:
            self._skeleton.parameters.remove(self._part)

    def _streamed_in(self, owner: nn.Module) -> list[_StreamedParameter]:
        return [
            _StreamedParameter(module, key, self._stand_ins[id(parameter)], parameter)
            for module in owner.modules()
            for key, parameter in module._parameters.items()  # noqa: SLF001  setattr would register
            if id(parameter) in self._stand_ins
        ]

    def _put(
        self, streamed: _StreamedParameter, parameter: nn.Parameter, *, is_faulty: bool
    ) -> None:
        streamed.module._parameters[streamed.key] = parameter  # noqa: SLF001
        self._skeleton.parameters.add(parameter, streamed.name, is_faulty=is_faulty)

    def _remove(self, streamed: _StreamedParameter) -> None:
        present = streamed.module._parameters[streamed.key]  # noqa: SLF001
        if present is not streamed.stand_in:
            if present is not None:
                self._skeleton.parameters.remove(present)
            streamed.module._parameters[streamed.key] = streamed.stand_in  # noqa: SLF001
