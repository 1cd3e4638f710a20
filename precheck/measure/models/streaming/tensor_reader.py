"""Reads stored tensors onto the device, whole or by rows, and audits each once on the way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precheck.checkpoint.checkpoint_audit import CheckpointAuditor
from precheck.measure.models.split_head import parts_of
from precheck.measure.models.streaming.buffer_pool import BufferPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from precheck.checkpoint.weights import Weights
    from precheck.records.stored import CheckpointAudit


class TensorReader:
    """Stored tensors on a device, in memory that is used again.

    Args:
        stored: the checkpoint's tensors.
        device: where they are to be; each is moved there as it is stored, and cast there.
    """

    def __init__(self, stored: Weights, *, device: str) -> None:
        self.stored = stored
        self.buffers = BufferPool()
        self._device = device
        self.shares_cores = device == "cpu"
        """The runs compute on the cores that read."""
        self._auditor = CheckpointAuditor(stored)
        self._num_audited_rows: dict[str, int] = {}
        """Of tensors that are audited part by part."""
        self._peaks: dict[str, float] = {}
        """Largest magnitude of each stored tensor that was read; inf if it is not finite."""

    def read(self, name: str) -> Tensor:
        """A whole tensor, as it is stored, still on the CPU and not audited."""
        return self.stored.read_into(name, self.buffers.lend(self.stored.nbytes(name)))

    def settle(self, tensors: dict[str, Tensor]) -> None:
        """Audits whole tensors, each once, on all cores, and moves them to the device."""
        new = {name: tensor for name, tensor in tensors.items() if not self._auditor.has(name)}
        for name, audit in self._auditor.add(new).items():
            stats = audit.stats
            self._peaks[name] = math.inf if stats.num_nonfinite else stats.abs_max or 0.0
        for name, tensor in tensors.items():
            tensors[name] = self.move(tensor)

    def read_part(self, name: str, rows: slice) -> Tensor:
        """Rows of a tensor; parts that follow each other from its start are audited."""
        part = self.read_rows(name, rows)
        if self._num_audited_rows.get(name, 0) == rows.start:
            self._auditor.add_part(name, part)
            self._num_audited_rows[name] = rows.stop
        return self.move(part)

    def read_rows(self, name: str, rows: slice | Sequence[int]) -> Tensor:
        """Rows of a tensor, still on the CPU and not audited."""
        self.stored.check_unchanged()
        num_rows, *_ = self.stored.shape(name)
        count = len(range(num_rows)[rows]) if isinstance(rows, slice) else len(rows)
        num_bytes = self.stored.nbytes(name) // num_rows * count
        return self.stored.read_rows_into(name, rows, self.buffers.lend(num_bytes))

    def move(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; the buffer it came from is reclaimed."""
        if self.shares_cores or tensor.device.type != "cpu":
            return tensor
        moved = tensor.to(self._device)
        self.buffers.reclaim(tensor)
        return moved

    def cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A tensor in a dtype; itself if it has that dtype."""
        if tensor.dtype is dtype:
            return tensor
        if not self.shares_cores:
            return tensor.to(dtype)
        return self.buffers.lend_tensor(tensor.shape, dtype).copy_(tensor)

    def peak(self, names: Sequence[str]) -> float:
        """Largest magnitude of whole tensors that were read; inf if one is not finite."""
        return max(self._peaks[name] for name in names)

    @property
    def vectors(self) -> dict[str, Tensor]:
        """Small tensors of one dimension that were audited, in float32 on the CPU."""
        return self._auditor.vectors

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """The audit of what was read so far, or of everything: the rest is then read in parts."""
        for name in self.stored if is_complete else ():
            num_audited = self._num_audited_rows.get(name, 0)
            if not self._auditor.has(name) or num_audited:
                self._audit_rest(name, num_audited)
        return self._auditor.result()

    def _audit_rest(self, name: str, num_audited: int) -> None:
        shape = self.stored.shape(name)
        if not shape:
            self.settle({name: self.read(name)})
            return
        row_elements = math.prod(shape[1:])
        for rows in parts_of(shape[0], row_elements) if row_elements else ():
            if rows.start >= num_audited:
                part = self.read_rows(name, rows)
                self._auditor.add_part(name, part)
                self.buffers.reclaim(part)
