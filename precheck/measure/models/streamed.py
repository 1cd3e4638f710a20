"""Models whose weights are streamed: read once, cast for every dtype, used by every run, dropped.

Idea. The models of all configurations are built without weights. When a run enters a *load unit*
(a unit, or a module of a unit that does not fit), its parameters are put in; when it leaves, they
are removed. All runs pass a load unit before any of them enters the next, so what was read for one
run, and cast to a dtype, serves the others, and is dropped when the next load unit's turn comes. Of
a large embedding only the rows that are looked up are read; a large head is read part by part.

Assumptions. Parameters are used inside the unit that owns them; those owned outside every unit are
few, and stay. Runs that leave the common order get the right weights, but read them again.

``streaming/background.py`` reads and casts, in a thread of its own;
``streaming/streamed_presence.py`` puts parameters into one run's model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.models.conversion import find_conversions
from precheck.measure.models.empty import empty_model
from precheck.measure.models.shared import SharedModels, share_parameters
from precheck.measure.models.streaming.background import BackgroundReader
from precheck.measure.models.streaming.load_units import LoadUnit, outside, plan_load_units
from precheck.measure.models.streaming.parameter_reader import ParameterReader
from precheck.measure.models.streaming.stored_parameters import StoredParameters
from precheck.measure.models.streaming.streamed_presence import StreamedPresence
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from precheck.checkpoint.architecture import Architecture
    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.models.presence import Presence
    from precheck.measure.models.skeleton import Skeleton
    from precheck.records.precision import Dtype
    from precheck.records.stored import CheckpointAudit


class StreamedModels(SharedModels):
    """Models of a checkpoint whose weights are read when a run needs them."""

    def __init__(self, checkpoint: Checkpoint, *, device: str) -> None:
        super().__init__(device=device, attention=checkpoint.attention)
        self._checkpoint = checkpoint
        self._stored = checkpoint.open_weights()
        self._source: tuple[StoredParameters, BackgroundReader] | None = None
        """What is stored, and what reads it; None until the first model is made."""
        self._stand_ins: dict[int, str] = {}
        self._load_units: dict[str, LoadUnit] = {}
        self._permanent: dict[Dtype, dict[str, nn.Parameter]] = {}

    @property
    def bytes_read(self) -> int:
        """Bytes of tensors read so far."""
        return self._stored.bytes_read

    def close(self) -> None:
        """Ends the thread and closes the files."""
        if self._source is not None:
            self._source[1].close()
        self._stored.close()
        super().close()

    def plan_memory(self, layout: Architecture, *, limit: int, used: int) -> str:
        """Decides what is in memory at once; see ``SharedModels.plan_memory``."""
        parameters, reader = self._opened
        load_units = plan_load_units(parameters, layout, limit=limit, used=used)
        self._load_units = {unit.module: unit for unit in load_units}
        # owned outside the units, or by a module around smaller load units: few and small
        permanent = outside(load_units, parameters)
        self._permanent = {dtype: self._read_permanent(permanent, dtype) for dtype in self._models}
        budget = limit - used - parameters.num_bytes(permanent, self._models)
        reader.plan(load_units, budget=budget)
        sizes = (parameters.num_bytes(unit.whole, self._models) for unit in load_units)
        at_once = min(max(sizes, default=0), budget)
        unit = "a decoder layer" if all(unit.is_whole_unit for unit in load_units) else "a module"
        return (
            f"weights read {unit} at a time, {num_bytes(at_once)} at "
            f"once ({num_bytes(limit)} allowed)"
        )

    def presence(self, skeleton: Skeleton) -> Presence:
        """Puts parameters into a skeleton and removes them; only after ``plan_memory``."""
        _, reader = self._opened
        return StreamedPresence(
            skeleton,
            reader,
            load_units=self._load_units,
            permanent=self._permanent[skeleton.dtype],
            stand_ins=self._stand_ins,
        )

    def vector(self, name: str) -> Tensor | None:
        """A stored parameter of one dimension; see ``SharedModels.vector``."""
        parameters, reader = self._opened
        if name not in parameters.first_names:
            return super().vector(name)
        return reader.vector(parameters.first_names[name])

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """The audit of all tensors; those that no run needed are read now.

        After a scan that broke off, of the tensors that were read.
        """
        _, reader = self._opened
        return reader.audit(is_complete=is_complete)

    def _make(self, dtype: Dtype) -> nn.Module:
        return self._without_weights(dtype, attn_implementation=None)

    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        owner = self._model(dtype)
        model = self._without_weights(dtype, attn_implementation=attn_implementation)
        share_parameters(model, owner)
        return model

    def _without_weights(self, dtype: Dtype, *, attn_implementation: str | None) -> nn.Module:
        model, loading = empty_model(
            self._checkpoint, self._stored, dtype, attn_implementation=attn_implementation
        )
        if self._source is None:
            self.loading = loading.explained(model, self._stored, self._checkpoint.quantization)
            self._source = self._open(model)
        parameters, _ = self._source
        parameters.dtypes[dtype] = {
            name: tensor.dtype for name, tensor in model.state_dict().items()
        }
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                self._stand_ins[id(parameter)] = parameters.first_names[name]
        self._fill(model, dtype)
        return model

    def _open(self, model: nn.Module) -> tuple[StoredParameters, BackgroundReader]:
        conversions = find_conversions(model, self._stored)
        parameters = StoredParameters(model, conversions, self._stored)
        reader = ParameterReader(self._stored, parameters, device=self._device)
        return parameters, BackgroundReader(reader)

    @property
    def _opened(self) -> tuple[StoredParameters, BackgroundReader]:
        assert self._source is not None  # noqa: S101  opened with the first model
        return self._source

    def _fill(self, model: nn.Module, dtype: Dtype) -> None:
        """Reads stored buffers, which are small, and moves what is in memory to the device."""
        parameters, reader = self._opened
        stored = reader.read_permanent(parameters.buffers.values(), dtype)
        with torch.no_grad():
            for path, module in model.named_modules():
                for key, buffer in module._buffers.items():  # noqa: SLF001  shared with other models
                    if buffer is not None:
                        filled = stored.get(f"{path}.{key}" if path else key)
                        values = buffer if filled is None else filled.data
                        module._buffers[key] = values.to(self._device)  # noqa: SLF001
                for parameter in module._parameters.values():  # noqa: SLF001
                    if parameter is not None and not parameter.is_meta:
                        parameter.data = parameter.data.to(self._device)

    def _read_permanent(self, names: tuple[str, ...], dtype: Dtype) -> dict[str, nn.Parameter]:
        parameters, reader = self._opened
        conversions = dict.fromkeys(parameters.conversion_of[name] for name in names)
        permanent = reader.read_permanent(conversions, dtype)
        return {name: permanent[name] for name in names}
