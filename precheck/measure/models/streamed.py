"""Weights that come and go: read once, cast for every dtype, used by every run, dropped.

Idea. The models of all configurations are built without weights. When a run enters a *piece* (a
unit, or a module of a unit that does not fit), its parameters are put in; when it leaves, they are
taken out. All runs pass a piece before any of them enters the next, so what was read for one, and
cast to a dtype, is there for the others, and is dropped when the next piece's turn comes. Of a
large embedding only the rows that are looked up are read; a large head is read part by part.

Assumptions. Parameters are used inside the unit that owns them; those owned outside every unit are
few, and stay. Runs that leave the common order are right, but read again.

Reading and casting happen in a thread of their own, because a run's thread is watched. No two
threads work at a time.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from precheck.measure.models.conversion import Conversion, find_conversions
from precheck.measure.models.empty import empty_model
from precheck.measure.models.load_units import LoadUnit, StoredParameters, plan_load_units
from precheck.measure.models.parameter_reader import ParameterReader
from precheck.measure.models.shared import SharedModels, share_parameters
from precheck.measure.models.slots import StreamedPresence
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture
    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.models.presence import Presence
    from precheck.measure.models.skeleton import Skeleton
    from precheck.records.precision import Dtype
    from precheck.records.report import CheckpointAudit

_T = TypeVar("_T")


class StreamedModels(SharedModels):
    """Models of a checkpoint whose weights are read when a run needs them."""

    def __init__(self, checkpoint: Checkpoint, *, device: str) -> None:
        super().__init__(device=device)
        self._checkpoint = checkpoint
        self._stored = checkpoint.open_weights()
        self._reader = ParameterReader(self._stored, device=device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="precheck weights")
        self._recipes: tuple[Conversion, ...] = ()
        self._streamed: StoredParameters | None = None
        self._empty: dict[int, str] = {}
        self._pieces: dict[str, LoadUnit] = {}
        self._following: dict[str, LoadUnit] = {}
        self._kept: dict[Dtype, dict[str, nn.Parameter]] = {}

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read so far."""
        return self._stored.bytes_read

    @property
    def pieces(self) -> tuple[LoadUnit, ...]:
        """What is in memory at once, in the order the model's units stand in."""
        return tuple(self._pieces.values())

    def close(self) -> None:
        """Ends the thread and closes the files."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._stored.close()
        super().close()

    def plan_memory(self, layout: Architecture, *, limit: int, used: int) -> str:
        """Decides what is in memory at once; see ``SharedModels.plan_memory``."""
        streamed = self._known
        pieces = plan_load_units(streamed, layout, limit=limit, used=used)
        self._pieces = {piece.module: piece for piece in pieces}
        self._following = {piece.module: following for piece, following in pairwise(pieces)}
        # owned outside the units, or by a module around smaller pieces: few and small
        rest = streamed.outside(pieces)
        self._kept = {dtype: self._in_thread(self._keep, rest, dtype) for dtype in self._models}
        self._reader.budget = limit - used - streamed.num_bytes(rest, self._models)
        largest = max((streamed.num_bytes(each.whole, self._models) for each in pieces), default=0)
        unit = "a decoder layer" if all(each.is_unit for each in pieces) else "a module"
        return (
            f"weights read {unit} at a time, {num_bytes(min(largest, self._reader.budget))} at "
            f"once ({num_bytes(limit)} allowed)"
        )

    def presence(self, skeleton: Skeleton) -> Presence:
        """Puts parameters into a skeleton and takes them out; only after ``plan_memory``."""
        return StreamedPresence(skeleton, self)

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """What is stored; tensors that no run needed are read now, unless the scan broke off."""
        return self._in_thread(partial(self._reader.audit, is_complete=is_complete))

    # What a presence asks for.

    def kept(self, dtype: Dtype) -> dict[str, nn.Parameter]:
        """Parameters that stay, by name."""
        return self._kept[dtype]

    def name_of(self, parameter: nn.Parameter) -> str | None:
        """The name of an empty parameter; None if it is no stand-in."""
        return self._empty.get(id(parameter))

    def piece(self, module: str) -> LoadUnit | None:
        """The piece that is there while a module runs."""
        return self._pieces.get(module)

    def fetch(self, piece: LoadUnit, dtype: Dtype) -> dict[str, nn.Parameter]:
        """The whole parameters of a piece, by name; the next piece is read while they are used."""
        made = self._in_thread(self._reader.fetch, piece, self._known, dtype)
        following = self._following.get(piece.module)
        if following is not None:
            self._thread.submit(self._reader.look_ahead, following, self._known)
        return made

    def rows(
        self, recipe: Conversion, dtype: Dtype, ids: Tensor
    ) -> tuple[Tensor, nn.Parameter, bool]:
        """Indices for ``ids``, the rows they index, and whether those are faulty."""
        return self._in_thread(self._reader.rows, recipe, self._known, dtype, ids)

    def part(self, recipe: Conversion, dtype: Dtype, rows: slice) -> tuple[nn.Parameter, bool]:
        """Rows of a parameter, until the next part is asked for, and whether they are faulty."""
        return self._in_thread(self._reader.part, recipe, self._known, dtype, rows)

    def is_faulty(self, name: str, dtype: Dtype) -> bool:
        """Whether a parameter is not finite in a dtype, where it is in float32."""
        return self._reader.is_faulty(name, dtype)

    def let_go(self, tensor: Tensor) -> None:
        """Memory that a model has handed on is not used for other weights."""
        self._reader.let_go(tensor)

    # Models without weights.

    def _make(self, dtype: Dtype) -> nn.Module:
        return self._prepared(dtype, attn_implementation=None)

    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        owner = self._model(dtype)
        model = self._prepared(dtype, attn_implementation=attn_implementation)
        share_parameters(model, owner)
        return model

    def _prepared(self, dtype: Dtype, *, attn_implementation: str | None) -> nn.Module:
        model, loading = empty_model(
            self._checkpoint, self._stored, dtype, attn_implementation=attn_implementation
        )
        if self._streamed is None:
            self.loading = loading
            self._recipes = find_conversions(model, self._stored)
            self._streamed = StoredParameters(model, self._recipes, self._stored)
        self._streamed.dtypes[dtype] = {
            name: each.dtype for name, each in model.state_dict().items()
        }
        names = self._streamed.names
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                self._empty[id(parameter)] = names[name]
        self._in_thread(self._fill, model, dtype)
        return model

    @property
    def _known(self) -> StoredParameters:
        assert self._streamed is not None  # noqa: S101  made with the first model
        return self._streamed

    def _fill(self, model: nn.Module, dtype: Dtype) -> None:
        """Stored buffers, which are small, are read now; what is in memory goes to the device."""
        streamed = self._known
        stored = self._reader.keep(streamed.buffers.values(), streamed, dtype)
        for path, module in model.named_modules():
            for key, buffer in module._buffers.items():  # noqa: SLF001  shared with other models
                if buffer is not None:
                    name = f"{path}.{key}" if path else key
                    kept = stored.get(name)
                    module._buffers[key] = (buffer if kept is None else kept.data).to(self._device)  # noqa: SLF001
            for parameter in module._parameters.values():  # noqa: SLF001
                if parameter is not None and not parameter.is_meta:
                    parameter.data = parameter.data.to(self._device)

    def _keep(self, names: tuple[str, ...], dtype: Dtype) -> dict[str, nn.Parameter]:
        recipes = dict.fromkeys(self._known.conversion_of[name] for name in names)
        found = self._reader.keep(recipes, self._known, dtype)
        return {name: found[name] for name in names}

    def _in_thread(self, task: Callable[..., _T], *args: Any) -> _T:
        def work() -> _T:
            with torch.no_grad():  # grad mode belongs to a thread
                return task(*args)

        return self._thread.submit(work).result()
