"""Parameters put into a model when a module begins, and taken out when it ends."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from precheck.measure.models.load_units import LoadUnit, ReadMode
from precheck.measure.models.split_head import SplitLinear
from precheck.measure.watch.trees import tensors_in

if TYPE_CHECKING:
    from torch import nn

    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.models.streamed import StreamedModels


class _Slot(NamedTuple):
    """A place in a model where a parameter comes and goes."""

    module: nn.Module
    key: str
    name: str
    empty: nn.Parameter | None


class StreamedPresence:
    """The presence of streamed parameters in one skeleton."""

    def __init__(self, skeleton: Skeleton, weights: StreamedModels) -> None:
        self._skeleton = skeleton
        self._weights = weights
        self._slots = {
            piece.module: self._slots_in(skeleton.model.get_submodule(piece.module))
            for piece in weights.pieces
        }
        units = {piece.module for piece in weights.pieces if piece.is_unit}
        self.waiting_points = tuple(module for module in self._slots if module not in units)
        self._padding: dict[str, int | None] = {}
        self._part_at_hand: nn.Parameter | None = None
        kept = weights.kept(skeleton.dtype)
        for slot in self._slots_in(skeleton.model):
            if slot.name in kept:
                is_faulty = weights.is_faulty(slot.name, skeleton.dtype)
                self._put(slot, kept[slot.name], is_faulty=is_faulty)

    def enter(
        self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Puts the parameters of a piece in."""
        piece = self._weights.piece(module)
        if piece is None:
            return None
        if piece.read_mode is ReadMode.ROWS:
            return self._enter_rows(piece, args, kwargs)
        made = self._weights.fetch(piece, self._skeleton.dtype)
        for slot in self._slots[module]:
            if slot.name in made:
                is_faulty = self._weights.is_faulty(slot.name, self._skeleton.dtype)
                self._put(slot, made[slot.name], is_faulty=is_faulty)
        if piece.read_mode is ReadMode.PARTS:
            head = self._skeleton.model.get_submodule(module)
            assert isinstance(head, SplitLinear)  # noqa: S101  planned so
            head.read_part = partial(self._part, piece)
        return None

    def leave(self, module: str, output: Any) -> None:
        """Takes them out."""
        piece = self._weights.piece(module)
        if piece is None:
            return
        for slot in self._slots[module]:
            self._take(slot)
        for tensor in tensors_in(output):
            self._weights.let_go(tensor)  # some modules return a view of a parameter
        holder: Any = self._skeleton.model.get_submodule(module)
        if piece.read_mode is ReadMode.PARTS:
            holder.read_part = None
            self._forget(self._part_at_hand)
        elif piece.read_mode is ReadMode.ROWS:
            holder.padding_idx = self._padding.pop(module)

    def _enter_rows(
        self, piece: LoadUnit, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert piece.large is not None  # noqa: S101  planned so
        embedding: Any = self._skeleton.model.get_submodule(piece.module)
        ids = args[0] if args else next(iter(tensors_in(kwargs)))
        index, rows, is_faulty = self._weights.rows(piece.large, self._skeleton.dtype, ids)
        for slot in self._slots[piece.module]:
            self._put(slot, rows, is_faulty=is_faulty)
        # padding counts for gradients alone, and its row may not be among these
        self._padding[piece.module], embedding.padding_idx = embedding.padding_idx, None
        if args:
            return (index, *args[1:]), kwargs
        return args, {key: index if each is ids else each for key, each in kwargs.items()}

    def _part(self, piece: LoadUnit, rows: slice) -> nn.Parameter:
        assert piece.large is not None  # noqa: S101  planned so
        self._forget(self._part_at_hand)
        part, is_faulty = self._weights.part(piece.large, self._skeleton.dtype, rows)
        self._part_at_hand = part
        self._know(part, piece.large_name or "", is_faulty=is_faulty)
        return part

    def _slots_in(self, module: nn.Module) -> list[_Slot]:
        found = []
        for each in module.modules():
            for key, parameter in each._parameters.items():  # noqa: SLF001  setattr would register
                name = None if parameter is None else self._weights.name_of(parameter)
                if name is not None:
                    found.append(_Slot(each, key, name, parameter))
        return found

    def _put(self, slot: _Slot, parameter: nn.Parameter, *, is_faulty: bool) -> None:
        slot.module._parameters[slot.key] = parameter  # noqa: SLF001
        self._know(parameter, slot.name, is_faulty=is_faulty)

    def _know(self, parameter: nn.Parameter, name: str, *, is_faulty: bool) -> None:
        self._skeleton.parameters.add(parameter, name, is_faulty=is_faulty)

    def _take(self, slot: _Slot) -> None:
        present = slot.module._parameters[slot.key]  # noqa: SLF001
        if present is not slot.empty:
            self._forget(present)
            slot.module._parameters[slot.key] = slot.empty  # noqa: SLF001

    def _forget(self, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            self._skeleton.parameters.remove(parameter)
