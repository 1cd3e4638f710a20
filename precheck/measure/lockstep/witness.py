"""Records of a scan besides its report: the peak of every operation, and the logits."""

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
    """Records what runs compute, and changes nothing."""

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """Called when a run has passed a segment of the model, whose numbers are fetched."""

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Called at the end of a run.

        Args:
            skeleton: the run's model.
            batch: the probes.
            logits: ``(batch, seq, vocab)``, or what a model without a head returns.
        """


@dataclass(slots=True, eq=False)
class PeakWitness:
    """Records the largest magnitude of each operation's output in float32, at real tokens."""

    peaks: dict[tuple[str, str, int], float] = field(default_factory=dict)
    """By module, operation, and how often it ran in that module before."""

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """Records the operations of a float32 run."""
        if not skeleton.dtype.is_reference:
            return
        for node in segment.nodes:
            abs_max = node.abs_max
            if abs_max and abs_max > self.peaks.get(node.key, 0.0):
                self.peaks[node.key] = abs_max

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Nothing to do: the logits are the output of an operation."""


@dataclass(slots=True, eq=False)
class Compared:
    """The logits of a run against those of the original model in float32."""

    totals: LogitsTotals = field(default_factory=LogitsTotals)
    max_difference: float = 0.0
    """Largest absolute difference of two logits; NaN where one is not finite."""
    is_identical: bool = True
    """Bit for bit."""

    def add(self, batch: Batch, logits: Tensor, reference: Tensor) -> None:
        """Adds the logits of a batch; both ``(batch, seq, vocab)``, any device, any dtype."""
        logits, reference, batch = logits.detach().cpu(), reference.cpu(), batch.to("cpu")
        self.totals.add(logits, reference, batch=batch, is_causal=False, same_routing=None)
        real = batch.real_tokens
        values, expected = real.tokens(logits).float(), real.tokens(reference)
        self.is_identical &= torch.equal(values, expected)
        difference = (values - expected).abs().max()
        # torch propagates a NaN, Python's max() may not
        self.max_difference = float(torch.tensor(self.max_difference).maximum(difference))

    @property
    def kl_divergence(self) -> float | None:
        """Mean over real tokens, in nats; None where a logit is not finite."""
        return None if self.totals.stats.num_nonfinite else self.totals.kl.value


@dataclass(slots=True, eq=False)
class LogitsWitness:
    """Compares the logits of every run with those of the original model in float32.

    Args:
        kept: the original's batches and logits, by the names of the batch's probes.
        keeps: this is the original; its first float32 run fills ``kept``.
    """

    kept: dict[tuple[str, ...], tuple[Batch, Tensor]] = field(default_factory=dict)
    keeps: bool = False
    compared: dict[tuple[Dtype, str], Compared] = field(default_factory=dict)
    """By dtype and attention implementation."""

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """Nothing to do: only the logits are compared."""

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Keeps the logits of the original, and compares those of every run with them."""
        names = tuple(probe.name for probe in batch.probes)
        if self.keeps and skeleton.dtype.is_reference and names not in self.kept:
            self.kept[names] = (batch, logits.detach().float().cpu().clone())
        if names not in self.kept:
            return
        configuration = (skeleton.dtype, skeleton.attn_implementation)
        compared = self.compared.setdefault(configuration, Compared())
        compared.add(batch, logits, self.kept[names][1])
