"""Reads pieces of a checkpoint, casts them to a run's dtype, and audits them on the way.

Everything here runs in one thread, which is not the one that is watched: while a layer computes,
what is stored of the next one is read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from precheck.checkpoint.audit import CheckpointAuditor
from precheck.measure.models.buffer_pool import BufferPool
from precheck.measure.models.load_units import ReadMode
from precheck.measure.models.split_head import PART_BYTES, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from precheck.checkpoint.weights import Weights
    from precheck.measure.models.conversion import Conversion
    from precheck.measure.models.load_units import LoadUnit, StoredParameters
    from precheck.records.precision import Dtype
    from precheck.records.report import CheckpointAudit


READ_AHEAD_BYTES = 256 << 20
"""What the system is asked to have ready of a piece that is not read yet: more could push out of
a small page cache what nobody has used."""


@dataclass(slots=True, eq=False)
class _AtHand:
    """What of a piece is in memory."""

    piece: LoadUnit
    stored: dict[str, Tensor] = field(default_factory=dict)
    made: dict[Dtype, dict[str, nn.Parameter]] = field(default_factory=dict)
    buffers: dict[Dtype, list[Tensor]] = field(default_factory=dict)


class ParameterReader:
    """Parameters of a checkpoint, a piece at a time.

    Args:
        stored: the checkpoint's tensors.
        device: where the parameters are to be; each stored tensor goes there once, as it is
            stored, and is cast there.
    """

    def __init__(self, stored: Weights, *, device: str) -> None:
        self._stored = stored
        self._device = device
        self._auditor = CheckpointAuditor(stored)
        self._audited_rows: dict[str, int] = {}
        self._peaks: dict[str, float] = {}
        """Largest magnitude of each stored tensor that was read; inf if it is not finite."""
        self._faulty: dict[Dtype, set[str]] = {}
        self._buffers = BufferPool()
        self._at_hand: _AtHand | None = None
        self._ahead: _AtHand | None = None
        """What is stored of the piece that comes next."""
        self._passing: list[Tensor] = []

    @property
    def budget(self) -> int:
        """Bytes that weights may take."""
        return self._buffers.limit

    @budget.setter
    def budget(self, num_bytes: int) -> None:
        self._buffers.limit = num_bytes

    # Whole pieces.

    def fetch(
        self, piece: LoadUnit, streamed: StoredParameters, dtype: Dtype
    ) -> dict[str, nn.Parameter]:
        """The piece's parameters in a dtype, by name; they stay until another piece's turn."""
        if self._at_hand is None or self._at_hand.piece is not piece:
            self._begin(piece)
        at_hand = self._at_hand
        assert at_hand is not None  # noqa: S101  just begun
        if dtype not in at_hand.made:
            self._make_room(at_hand, streamed.num_bytes(piece.whole, [dtype]))
            at_hand.made[dtype], at_hand.buffers[dtype] = self._make(
                piece.recipes, streamed, dtype, at_hand.stored
            )
        return at_hand.made[dtype]

    def look_ahead(self, piece: LoadUnit, streamed: StoredParameters) -> None:
        """Reads what is stored of the next piece while the one at hand is used.

        Where there is no room for both, the system is asked to have it ready. What fails here
        fails again when the piece is asked for, and is reported then.
        """
        if self._ahead is not None or self._at_hand is None:
            return
        self._ahead = _AtHand(piece)
        at_hand = self._at_hand.piece.whole
        needed = max(streamed.num_bytes(at_hand, [dtype]) for dtype in streamed.dtypes)
        if needed + streamed.num_bytes(piece.whole, []) <= self.budget:
            self._read_whole(self._ahead)
        waiting = [each for each in piece.sources if each not in self._ahead.stored]
        self._stored.read_ahead(waiting, limit=READ_AHEAD_BYTES)

    def keep(
        self, recipes: Iterable[Conversion], streamed: StoredParameters, dtype: Dtype
    ) -> dict[str, nn.Parameter]:
        """Parameters and buffers that stay as long as the scan, by name."""
        kept: dict[str, nn.Parameter] = {}
        for recipe in recipes:
            stored = {source: self._read(source) for source in recipe.sources}
            made, held = self._make([recipe], streamed, dtype, stored)
            kept |= {name: _parameter(each.detach().clone()) for name, each in made.items()}
            self._give(*held, *stored.values())
        return kept

    def _begin(self, piece: LoadUnit) -> None:
        self._drop()
        self._stored.check_unchanged()
        if self._ahead is None or self._ahead.piece is not piece:
            self._drop_ahead()
            self._ahead = _AtHand(piece)
        self._at_hand, self._ahead = self._ahead, None
        self._read_whole(self._at_hand)
        self._read_large(piece, self._at_hand)

    def _read_whole(self, at_hand: _AtHand) -> None:
        """What is not yet in memory of the stored tensors that are used from end to end."""
        for recipe in at_hand.piece.recipes:
            for source in recipe.sources:
                if source not in at_hand.stored:
                    at_hand.stored[source] = self._read(source)

    def _read_large(self, piece: LoadUnit, at_hand: _AtHand) -> None:
        """What is used in parts is read at once if it fits; it is cast part by part anyway."""
        if piece.read_mode is not ReadMode.PARTS or piece.large is None:
            return
        (source,) = piece.large.sources
        if self._stored.nbytes(source) + 2 * PART_BYTES <= self.budget:
            at_hand.stored[source] = self._read(source)

    def _drop(self) -> None:
        if self._at_hand is not None:
            self._give(*self._at_hand.stored.values())
            for held in self._at_hand.buffers.values():
                self._give(*held)
        self._at_hand = None

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._give(*self._ahead.stored.values())
        self._ahead = None

    def _make_room(self, at_hand: _AtHand, num_bytes: int) -> None:
        """Drops what was made for other dtypes, first made first, as far as the budget asks."""
        ahead = () if self._ahead is None else self._ahead.stored.values()
        stored = sum(each.nbytes for each in (*at_hand.stored.values(), *ahead))
        for dtype in list(at_hand.made):
            taken = sum(each.nbytes for held in at_hand.buffers.values() for each in held)
            if stored + taken + num_bytes <= self.budget:
                break
            del at_hand.made[dtype]
            self._give(*at_hand.buffers.pop(dtype))

    def _read(self, source: str) -> Tensor:
        """A stored tensor on the device, read now."""
        tensor = self._stored.read_into(source, self._buffers.take(self._stored.nbytes(source)))
        if not self._auditor.has(source):
            stats = self._auditor.add(source, tensor).stats
            self._peaks[source] = math.inf if stats.num_nonfinite else stats.abs_max or 0.0
        return self._moved(tensor)

    def _moved(self, tensor: Tensor) -> Tensor:
        if self._device == "cpu":
            return tensor
        moved = tensor.to(self._device)
        self._buffers.give(tensor)
        return moved

    def _make(
        self,
        recipes: Iterable[Conversion],
        streamed: StoredParameters,
        dtype: Dtype,
        stored: dict[str, Tensor],
    ) -> tuple[dict[str, nn.Parameter], list[Tensor]]:
        """Parameters (and buffers) by name, and the tensors whose memory they take."""
        made: dict[str, nn.Parameter] = {}
        held: list[Tensor] = []
        for recipe in recipes:
            wanted = streamed.dtype_of(recipe.target, dtype)
            cast = [self._cast(stored[source], wanted) for source in recipe.sources]
            results = recipe.convert(cast, streamed.model)
            used = {_storage(each) for each in results.values()}
            kept = {_storage(stored[source]) for source in recipe.sources}
            for each in cast:
                if _storage(each) not in used | kept:
                    self._buffers.give(each)
            held += [each for each in results.values() if _storage(each) not in kept]
            peak = max(self._peaks[source] for source in recipe.sources)
            for target, tensor in results.items():
                name = streamed.names.get(target, target)
                made[name] = _parameter(tensor)
                if wanted.is_floating_point and peak > torch.finfo(wanted).max:
                    self._look_for_fault(name, tensor, dtype, was_finite=peak < math.inf)
        return made, held

    def _look_for_fault(self, name: str, tensor: Tensor, dtype: Dtype, *, was_finite: bool) -> None:
        if (was_finite or dtype.is_reference) and not _is_finite(tensor):
            self._faulty.setdefault(dtype, set()).add(name)

    def is_faulty(self, name: str, dtype: Dtype) -> bool:
        """Whether a parameter is not finite in a dtype, though what is stored is finite.

        In float32, whether it is finite at all.
        """
        return name in self._faulty.get(dtype, ())

    def let_go(self, tensor: Tensor) -> None:
        """Memory that somebody outside holds is not used for other weights."""
        self._buffers.forget(tensor)

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.dtype is dtype:
            return tensor
        if self._device != "cpu":
            return tensor.to(dtype)
        return self._buffers.tensor(tensor.shape, dtype).copy_(tensor)

    def _give(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self._buffers.give(tensor)

    # Rows and parts of one large matrix.

    def rows(
        self, recipe: Conversion, streamed: StoredParameters, dtype: Dtype, ids: Tensor
    ) -> tuple[Tensor, nn.Parameter, bool]:
        """Indices for ``ids`` (int64, the same shape), the rows they index, and are they faulty."""
        unique, index = ids.cpu().unique(return_inverse=True)
        (source,) = recipe.sources
        part = self._read_rows(source, unique.tolist())
        moved = self._moved(part)
        cast = moved.to(streamed.dtype_of(recipe.target, dtype), copy=True)
        is_faulty = _is_faulty(moved, cast, dtype)
        self._give(part)
        return index.to(ids.device), _parameter(cast), is_faulty

    def part(
        self, recipe: Conversion, streamed: StoredParameters, dtype: Dtype, rows: slice
    ) -> tuple[nn.Parameter, bool]:
        """Rows of a parameter, until the next part is asked for, and are they faulty."""
        self._give(*self._passing)
        (source,) = recipe.sources
        whole = None if self._at_hand is None else self._at_hand.stored.get(source)
        part = self._part_from_file(source, rows) if whole is None else whole[rows]
        cast = self._cast(part, streamed.dtype_of(recipe.target, dtype))
        read = [part] if whole is None else []
        self._passing = [*read, *([] if cast is part else [cast])]  # what is stored stays
        return _parameter(cast), _is_faulty(part, cast, dtype)

    def _part_from_file(self, source: str, rows: slice) -> Tensor:
        part = self._read_rows(source, rows)
        if self._audited_rows.get(source, 0) == rows.start:
            self._auditor.add(source, part)
            self._audited_rows[source] = rows.stop
        return self._moved(part)

    def _read_rows(self, source: str, rows: slice | Sequence[int]) -> Tensor:
        self._stored.check_unchanged()
        num_rows, *_ = self._stored.shape(source)
        count = len(range(num_rows)[rows]) if isinstance(rows, slice) else len(rows)
        num_bytes = self._stored.nbytes(source) // num_rows * count
        return self._stored.read_rows_into(source, rows, self._buffers.take(num_bytes))

    # The audit.

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """What is stored: what was read until now, or all of it; the rest is read in parts."""
        self._drop()
        self._drop_ahead()
        self._give(*self._passing)
        for name in self._stored if is_complete else ():
            start = self._audited_rows.get(name, 0)
            if self._auditor.has(name) and not start:
                continue
            shape = self._stored.shape(name)
            if not shape:
                self._read(name)
                continue
            elements = math.prod(shape[1:])
            for rows in parts_of(shape[0], elements) if elements else ():
                if rows.start >= start:
                    part = self._read_rows(name, rows)
                    self._auditor.add(name, part)
                    self._buffers.give(part)
        return self._auditor.result()


def _parameter(tensor: Tensor) -> nn.Parameter:
    """As loading makes it: where a parameter could be trained, torch may fold a product."""
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def _is_faulty(stored: Tensor, cast: Tensor, dtype: Dtype) -> bool:
    return not _is_finite(cast) and (dtype.is_reference or _is_finite(stored))


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _storage(tensor: Tensor) -> int:
    """What tells the memory of one tensor from another's."""
    return tensor.untyped_storage().data_ptr()
