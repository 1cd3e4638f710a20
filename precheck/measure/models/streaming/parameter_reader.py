"""Makes the parameters of load units from stored tensors, cast to each run's dtype.

Everything here runs in one thread, which is not the one that is watched: while a layer computes,
the stored tensors of the next one are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from precheck.measure.models.split_head import PART_BYTES
from precheck.measure.models.streaming.load_units import ReadMode
from precheck.measure.models.streaming.tensor_reader import TensorReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from precheck.checkpoint.weights import Weights
    from precheck.measure.models.conversion import Conversion
    from precheck.measure.models.streaming.load_units import LoadUnit
    from precheck.measure.models.streaming.stored_parameters import StoredParameters
    from precheck.records.precision import Dtype
    from precheck.records.stored import CheckpointAudit


READ_AHEAD_BYTES = 256 << 20
"""What the system is asked to have ready of a load unit that is not read yet: more could push out
of a small page cache what nobody has used."""


@dataclass(slots=True, eq=False)
class _Loaded:
    """What is in memory of a load unit."""

    unit: LoadUnit
    stored: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[Dtype, dict[str, nn.Parameter]] = field(default_factory=dict)
    buffers: dict[Dtype, list[Tensor]] = field(default_factory=dict)
    """Tensors whose memory the parameters take, besides the stored ones."""
    parts: dict[tuple[Dtype, int], tuple[nn.Parameter, bool]] = field(default_factory=dict)
    """Of the large parameter: parts by dtype and first row, and whether each is faulty."""
    part_buffers: list[Tensor] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """What all of it takes."""
        cast = (tensor for tensors in self.buffers.values() for tensor in tensors)
        return sum(tensor.nbytes for tensor in (*self.stored.values(), *cast, *self.part_buffers))


class ParameterReader:
    """Parameters of a checkpoint, a load unit at a time.

    Args:
        stored: the checkpoint's tensors.
        parameters: the model's, and what makes each.
        device: where the parameters are to be.
    """

    def __init__(self, stored: Weights, parameters: StoredParameters, *, device: str) -> None:
        self._tensors = TensorReader(stored, device=device)
        self._stored = stored
        self._parameters = parameters
        self._buffers = self._tensors.buffers
        self._faulty: dict[Dtype, set[str]] = {}
        self._current: _Loaded | None = None
        self._next: _Loaded | None = None
        """Stored tensors of the load unit that comes next."""
        self._part: list[Tensor] = []
        """The memory of the part of a large parameter that was read last."""

    @property
    def budget(self) -> int:
        """Bytes that weights may take."""
        return self._buffers.limit

    @budget.setter
    def budget(self, num_bytes: int) -> None:
        self._buffers.limit = num_bytes

    # Whole load units.

    def fetch(self, unit: LoadUnit, dtype: Dtype) -> dict[str, nn.Parameter]:
        """The unit's parameters in a dtype, by name; they stay until another unit is fetched."""
        current = self._current
        if current is None or current.unit is not unit:
            current = self._load(unit)
        if dtype not in current.parameters:
            self._make_room(current, self._parameters.num_bytes(unit.whole, [dtype]))
            current.parameters[dtype], current.buffers[dtype] = self._convert(
                unit.conversions, dtype, current.stored
            )
        return current.parameters[dtype]

    def read_ahead(self, unit: LoadUnit) -> None:
        """Reads the stored tensors of the next load unit while the current one is used.

        Where the runs need the cores it only reads: products wait for the slowest core. Where
        there is no room for both, the system is asked to have them ready. What fails here fails
        again when the unit is fetched, and is reported then.
        """
        if self._next is not None or self._current is None:
            return
        self._next = _Loaded(unit)
        parameters, current = self._parameters, self._current.unit.whole
        needed = max(parameters.num_bytes(current, [dtype]) for dtype in parameters.dtypes)
        if needed + parameters.num_bytes(unit.whole, []) <= self.budget:
            self._read_whole(self._next)
            if not self._tensors.shares_cores:
                self._tensors.settle(self._next.stored)
        unread = [name for name in unit.sources if name not in self._next.stored]
        self._stored.read_ahead(unread, limit=READ_AHEAD_BYTES)

    def read_permanent(
        self, conversions: Iterable[Conversion], dtype: Dtype
    ) -> dict[str, nn.Parameter]:
        """Parameters and buffers that stay as long as the scan, by name."""
        permanent: dict[str, nn.Parameter] = {}
        for conversion in conversions:
            stored = {source: self._tensors.read(source) for source in conversion.sources}
            self._tensors.settle(stored)
            converted, buffers = self._convert([conversion], dtype, stored)
            permanent |= {
                name: _parameter(parameter.detach().clone())
                for name, parameter in converted.items()
            }
            self._buffers.reclaim(*buffers, *stored.values())
        return permanent

    def is_faulty(self, name: str, dtype: Dtype) -> bool:
        """Whether a parameter is not finite in a dtype, though what is stored is finite.

        In float32, whether it is not finite at all.
        """
        return name in self._faulty.get(dtype, ())

    def disown(self, tensor: Tensor) -> None:
        """Leaves the memory of a tensor to whoever holds it: no other weights are put there."""
        self._buffers.disown(tensor)

    def _load(self, unit: LoadUnit) -> _Loaded:
        """Drops the current load unit and reads another one's stored tensors."""
        self._drop_current()
        self._stored.check_unchanged()
        if self._next is None or self._next.unit is not unit:
            self._drop_next()
            self._next = _Loaded(unit)
        # what follows may fail: then this is the one to drop at the next load
        loaded, self._current, self._next = self._next, self._next, None
        self._read_whole(loaded)
        self._read_large(loaded)
        self._tensors.settle(loaded.stored)
        return loaded

    def _read_whole(self, loaded: _Loaded) -> None:
        """Reads the stored tensors that are used from end to end and not in memory yet."""
        for conversion in loaded.unit.conversions:
            for source in conversion.sources:
                if source not in loaded.stored:
                    loaded.stored[source] = self._tensors.read(source)

    def _read_large(self, loaded: _Loaded) -> None:
        """Reads at once what is used in parts, if it fits; it is cast part by part anyway."""
        unit = loaded.unit
        if unit.read_mode is not ReadMode.PARTS or unit.large is None:
            return
        (source,) = unit.large.sources
        if self._stored.nbytes(source) + 2 * PART_BYTES <= self.budget:
            loaded.stored[source] = self._tensors.read(source)

    def _drop_current(self) -> None:
        if self._current is not None:
            self._buffers.reclaim(*self._current.stored.values())
            for buffers in self._current.buffers.values():
                self._buffers.reclaim(*buffers)
            self._buffers.reclaim(*self._current.part_buffers)
        self._current = None

    def _drop_next(self) -> None:
        if self._next is not None:
            self._buffers.reclaim(*self._next.stored.values())
        self._next = None

    def _make_room(self, loaded: _Loaded, num_bytes: int) -> None:
        """Drops parameters of other dtypes, oldest first, until ``num_bytes`` fit the budget."""
        for dtype in list(loaded.parameters):
            if self._has_room(loaded, num_bytes):
                break
            del loaded.parameters[dtype]
            self._buffers.reclaim(*loaded.buffers.pop(dtype))

    def _has_room(self, loaded: _Loaded, num_bytes: int) -> bool:
        next_bytes = 0 if self._next is None else self._next.num_bytes
        return loaded.num_bytes + next_bytes + num_bytes <= self.budget

    def _convert(
        self,
        conversions: Iterable[Conversion],
        dtype: Dtype,
        stored: dict[str, Tensor],
    ) -> tuple[dict[str, nn.Parameter], list[Tensor]]:
        """Parameters (and buffers) by name, and the tensors whose memory they take."""
        converted: dict[str, nn.Parameter] = {}
        buffers: list[Tensor] = []
        for conversion in conversions:
            target_dtype = self._parameters.dtype_of(conversion.target, dtype)
            results, memory = self._apply(conversion, target_dtype, stored)
            buffers += memory
            peak = self._tensors.peak(conversion.sources)
            for target, tensor in results.items():
                name = self._parameters.first_names.get(target, target)
                converted[name] = _parameter(tensor)
                if target_dtype.is_floating_point and peak > torch.finfo(target_dtype).max:
                    self._record_fault(name, tensor, dtype, is_stored_finite=peak < math.inf)
        return converted, buffers

    def _apply(
        self, conversion: Conversion, dtype: torch.dtype, stored: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The results of one conversion by name, and those that do not lie in a stored tensor."""
        cast = [self._tensors.cast(stored[source], dtype) for source in conversion.sources]
        results = conversion.convert(cast, self._parameters.model)
        result_storages = {_storage(tensor) for tensor in results.values()}
        stored_storages = {_storage(stored[source]) for source in conversion.sources}
        for tensor in cast:
            if _storage(tensor) not in result_storages | stored_storages:
                self._buffers.reclaim(tensor)
        return results, [
            tensor for tensor in results.values() if _storage(tensor) not in stored_storages
        ]

    def _record_fault(
        self, name: str, tensor: Tensor, dtype: Dtype, *, is_stored_finite: bool
    ) -> None:
        if (is_stored_finite or dtype.is_reference) and not _is_finite(tensor):
            self._faulty.setdefault(dtype, set()).add(name)

    # Rows and parts of one large parameter.

    def rows(
        self, conversion: Conversion, dtype: Dtype, ids: Tensor
    ) -> tuple[Tensor, nn.Parameter, bool]:
        """Indices for ``ids`` (int64, same shape), the rows, and whether those are faulty."""
        unique, index = ids.cpu().unique(return_inverse=True)
        (source,) = conversion.sources
        rows = self._tensors.read_rows(source, unique.tolist())
        moved = self._tensors.move(rows)
        cast = moved.to(self._parameters.dtype_of(conversion.target, dtype), copy=True)
        is_faulty = _is_faulty(moved, cast, dtype)
        self._buffers.reclaim(rows)
        return index.to(ids.device), _parameter(cast), is_faulty

    def part(self, conversion: Conversion, dtype: Dtype, rows: slice) -> tuple[nn.Parameter, bool]:
        """Rows of a parameter, valid until the next part is read, and whether they are faulty.

        Where there is room, they are kept for the next run or batch that needs them.
        """
        self._buffers.reclaim(*self._part)
        self._part = []
        (source,) = conversion.sources
        current = self._current
        whole = None if current is None else current.stored.get(source)
        if current is not None and (dtype, rows.start) in current.parts:
            return current.parts[dtype, rows.start]
        part = self._tensors.read_part(source, rows) if whole is None else whole[rows]
        cast = self._tensors.cast(part, self._parameters.dtype_of(conversion.target, dtype))
        read = [part] if whole is None else []  # a part of a whole tensor is not its own memory
        memory = [*read, *([] if cast is part else [cast])]
        found = _parameter(cast), _is_faulty(part, cast, dtype)
        if current is not None and self._has_room(current, sum(each.nbytes for each in memory)):
            current.parts[dtype, rows.start] = found
            current.part_buffers += memory
        else:
            self._part = memory
        return found

    def vector(self, name: str) -> Tensor | None:
        """A parameter of one dimension, by its first name; None if it was not read as it is."""
        conversion = self._parameters.conversion_of[name]
        if conversion.converter is not None:
            return None
        return self._tensors.vectors.get(conversion.sources[0])

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """The audit of what was read so far, or of everything; nothing loaded is used any more."""
        self._drop_current()
        self._drop_next()
        self._buffers.reclaim(*self._part)
        return self._tensors.audit(is_complete=is_complete)


def _parameter(tensor: Tensor) -> nn.Parameter:
    """As loading makes it: where a parameter could be trained, torch may fold a product."""
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def _is_faulty(stored: Tensor, cast: Tensor, dtype: Dtype) -> bool:
    return not _is_finite(cast) and (dtype.is_reference or _is_finite(stored))


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


def _storage(tensor: Tensor) -> int:
    """Identifies the memory that a tensor lies in."""
    return tensor.untyped_storage().data_ptr()
