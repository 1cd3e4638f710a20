"""The weights of two checkpoints, for runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.measure.models.shared import SharedModels

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.models.presence import Presence
    from precheck.measure.models.skeleton import Skeleton
    from precheck.records.precision import Dtype


class PairedModels(SharedModels):
    """The models of two checkpoints, each of which reads its own weights.

    Args:
        first: of the runs that others are compared with.
        second: of runs with other weights.
        device: of both.
    """

    def __init__(self, first: SharedModels, second: SharedModels, *, device: str) -> None:
        super().__init__(device=device, attention=None)
        self._first, self._second = first, second

    def presence(self, skeleton: Skeleton) -> Presence:
        """Puts the parameters of its own checkpoint into a skeleton."""
        owner = self._second if skeleton.has_other_weights else self._first
        return owner.presence(skeleton)

    @property
    def bytes_read(self) -> int:
        """Bytes of stored weights read so far."""
        return self._first.bytes_read + self._second.bytes_read

    def plan_memory(self, layout: Architecture, *, limit: int, used: int) -> str:
        """Gives each of both half of the memory; see ``SharedModels.plan_memory``."""
        half = used + (limit - used) // 2
        words = self._first.plan_memory(layout, limit=half, used=used)
        self._second.plan_memory(layout, limit=half, used=used)
        return words

    def _make(self, dtype: Dtype) -> nn.Module:
        return self._first._make(dtype)

    def _rebuild(self, dtype: Dtype, attn_implementation: str) -> nn.Module:
        return self._first._rebuild(dtype, attn_implementation)  # noqa: SLF001  of the same class
