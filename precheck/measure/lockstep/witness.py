"""What a scan may be watched with beside its own report: every peak, and the logits themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from precheck.measure.lockstep.logits import LogitsTotals

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.segment import Segment
    from precheck.records.precision import Dtype


class Witness(Protocol):
    """Is shown what runs make, and changes nothing."""

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """A run has passed a stretch of the model; its numbers are fetched."""

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """A run is at its end: logits ``(batch, seq, vocab)``, or what the model gives instead."""


@dataclass(slots=True, eq=False)
class PeakWitness:
    """Remembers how large each operation's result became in float32, at real tokens."""

    peaks: dict[tuple[str, str, int], float] = field(default_factory=dict)
    """By module, operation, and how often it ran there before."""

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """Takes what a float32 run made."""
        if not skeleton.dtype.is_reference:
            return
        for node in segment.nodes:
            abs_max = node.abs_max
            if abs_max and abs_max > self.peaks.get(node.key, 0.0):
                self.peaks[node.key] = abs_max

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Logits are operations like others."""


@dataclass(slots=True, eq=False)
class Compared:
    """Logits of a run against those of the original in float32."""

    totals: LogitsTotals = field(default_factory=LogitsTotals)
    max_difference: float = 0.0
    """Largest absolute difference of two logits; NaN where one is not finite."""
    is_identical: bool = True
    """Bit for bit."""

    def add(self, batch: Batch, logits: Tensor, reference: Tensor) -> None:
        """Takes those of a batch; both ``(batch, seq, vocab)``, anywhere, any dtype."""
        ours, theirs, here = logits.detach().cpu(), reference.cpu(), batch.to("cpu")
        self.totals.add(ours, theirs, batch=here, is_causal=False, same_routing=None)
        real = here.real_tokens
        mine, known = real.tokens(ours).float(), real.tokens(theirs)
        self.is_identical &= torch.equal(mine, known)
        difference = (mine - known).abs().max()
        # torch hands a NaN on, Python's max() may not
        self.max_difference = float(torch.tensor(self.max_difference).maximum(difference))

    @property
    def kl_divergence(self) -> float | None:
        """Mean over real tokens, nats; None where a logit is not finite."""
        return None if self.totals.stats.num_nonfinite else self.totals.kl.value


@dataclass(slots=True, eq=False)
class LogitsWitness:
    """Compares the logits of every run with those of the original in float32.

    Args:
        kept: those, with their batches, by the names of the batch's probes.
        keeps: take them from the first float32 run.
    """

    kept: dict[tuple[str, ...], tuple[Batch, Tensor]] = field(default_factory=dict)
    keeps: bool = False
    found: dict[tuple[Dtype, str], Compared] = field(default_factory=dict)
    """By dtype and attention implementation."""

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """Nothing but the end counts."""

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Keeps them, or compares them."""
        names = tuple(probe.name for probe in batch.probes)
        if self.keeps and skeleton.dtype.is_reference and names not in self.kept:
            self.kept[names] = (batch, logits.detach().float().cpu().clone())
        if names not in self.kept:
            return
        found = self.found.setdefault((skeleton.dtype, skeleton.attn_implementation), Compared())
        found.add(batch, logits, self.kept[names][1])
