"""What one run gathers over all batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.probe.compare import LayerTotals
from precheck.probe.overflows import Found, Peaks, overflow_rows
from precheck.records.traces import RunTrace

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.probe.logits import LogitsTotals
    from precheck.probe.skeleton import Skeleton
    from precheck.records.traces import Section, Symptom


class RunTotals:
    """Statistics of one run, batch after batch."""

    def __init__(self, skeleton: Skeleton) -> None:
        self.skeleton = skeleton
        self.layers: dict[tuple[Section, int], LayerTotals] = {}
        self.logits: LogitsTotals | None = None
        self.found: list[tuple[Found, bool]] = []
        """Producers, and whether each is absorbed."""
        self.reaches_output = False
        self.reference_nonfinite = False
        self.symptom: Symptom | None = None
        self.failure: str | None = None
        self.num_watched = 0
        self.unwatched: dict[str, int] = {}
        self.peaks = Peaks(dtype=skeleton.dtype, attn_implementation=skeleton.attn_implementation)
        self.fused_scores = Peaks(dtype=skeleton.dtype, attn_implementation="eager")
        """Raw scores computed from the query and key of fused attention."""
        self._num_producers = 0

    def next_identity(self) -> int:
        """Another name for another producer."""
        self._num_producers += 1
        return self._num_producers

    def add_layer(
        self,
        *,
        index: int,
        section: Section,
        module: str,
        tokens: Tensor,
        reference: Tensor | None,
        alike: Tensor | None,
        agrees: Tensor | None,
    ) -> None:
        """Takes a decoder layer's output; the arguments are those of ``LayerTotals``."""
        key = (section, index)
        if key not in self.layers:
            self.layers[key] = LayerTotals(index=index, section=section, module=module)
        self.layers[key].add(tokens, reference, alike)
        if agrees is not None:
            self.layers[key].add_routing(agrees)

    def trace(self, *, device: str) -> RunTrace:
        """As the report has it."""
        skeleton = self.skeleton
        return RunTrace(
            dtype=skeleton.dtype,
            attn_implementation=skeleton.attn_implementation,
            requested_attn_implementation=skeleton.requested_attn_implementation,
            device=device,
            experts_implementation=skeleton.experts_implementation,
            failure=self.failure,
            overflows=overflow_rows(self.found),
            reaches_output=self.reaches_output,
            reference_nonfinite=self.reference_nonfinite,
            layers=tuple(each.trace for each in self.layers.values()),
            logits=None if self.logits is None else self.logits.trace,
            symptom=self.symptom,
        )
