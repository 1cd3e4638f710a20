"""Records of a scan besides its report: the peak of every operation, and the logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.measure.lockstep.figures.logits import LogitsTotals
from precheck.measure.watch.op_kinds import FUSED_NORMS, GROUPED_PRODUCT
from precheck.measure.watch.peaks import OpKey, Peaks, Share, Wanted, reduced_by_group, reduced_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from precheck.measure.blame.located_producer import Location
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.real_tokens import RealTokens
    from precheck.measure.watch.segment import OpNode, Segment
    from precheck.records.mechanism import Mechanism
    from precheck.records.precision import Dtype


class Witness:
    """Records what runs compute, and changes nothing; this one records nothing."""

    __slots__ = ()

    def record_op(
        self,
        skeleton: Skeleton,
        node: OpNode,
        tensors: list[Tensor],
        outputs: list[Tensor],
        real: RealTokens,
    ) -> None:
        """Called when an operation of a float32 run gave floating-point results.

        Args:
            skeleton: the run's model.
            node: the operation.
            tensors: those among its arguments.
            outputs: its results.
            real: which of their positions are tokens.
        """

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """Called when a run has passed a segment of the model, whose numbers are fetched."""

    def record_peak(
        self,
        skeleton: Skeleton,
        held: OpNode,
        *,
        abs_max: float,
        mechanism: Mechanism,
        location: Location,
    ) -> None:
        """Called for every operation that a run of 16 bits computes in 16 bits.

        Args:
            skeleton: the run's model.
            held: the operation of the float32 run whose result it has to hold.
            abs_max: the largest magnitude of that, at real tokens.
            mechanism: why it would overflow.
            location: where it stands in the model.
        """

    def record_text(
        self, skeleton: Skeleton, batch: Batch, *, strategy: str, tokens: Sequence[int]
    ) -> None:
        """Called when a run has continued a prompt.

        Args:
            skeleton: the run's model.
            batch: the prompt.
            strategy: greedy or sampled.
            tokens: what it wrote.
        """

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Called at the end of a run.

        Args:
            skeleton: the run's model.
            batch: the probes.
            logits: ``(batch, seq, vocab)``, or what a model without a head returns.
        """


@dataclass(slots=True, eq=False)
class PeakWitness(Witness):
    """Records the largest magnitude of each operation's output in float32, at real tokens.

    Args:
        wanted: what else is measured.
    """

    wanted: Wanted = field(default_factory=Wanted)
    peaks: Peaks = field(default_factory=Peaks)
    _ends: dict[int, Tensor] = field(default_factory=dict)
    """Where each expert's rows end, of the last grouped product, by the identity of a run."""
    _misfits: set[OpKey] = field(default_factory=set)
    """Operations whose peaks by element would be those of some batches only."""

    def record_op(
        self,
        skeleton: Skeleton,
        node: OpNode,
        tensors: list[Tensor],
        outputs: list[Tensor],
        real: RealTokens,
    ) -> None:
        """Records the peaks of an operation by element, if they are requested."""
        if node.key in self.wanted.epsilons:
            self._record_share(node, outputs, real)
        output = outputs[0]
        if GROUPED_PRODUCT in node.op:
            self._ends[id(skeleton)] = next(t for t in tensors if not t.is_floating_point())
        shape = self.wanted.shapes.get(node.key)
        if shape is None:
            return
        if len(shape) > output.dim():
            ends = self._ends.get(id(skeleton))
            peaks = None if ends is None else reduced_by_group(shape, output, ends)
        else:
            peaks = reduced_to(shape, output, real.mask_for(output))
        if peaks is None:  # of another shape in this batch: its largest is all that is known
            self._misfits.add(node.key)
            self.peaks.by_element.pop(node.key, None)
        elif node.key not in self._misfits:
            before = self.peaks.by_element.get(node.key)
            after = peaks.detach().float().cpu()
            self.peaks.by_element[node.key] = after if before is None else before.maximum(after)

    def _record_share(self, node: OpNode, outputs: list[Tensor], real: RealTokens) -> None:
        is_norm = node.op in FUSED_NORMS
        sums = outputs[-1].double() ** -2 if is_norm else outputs[0]
        selected = real.select(sums)
        share = self.peaks.shares.setdefault(node.key, Share())
        share.add(sums if selected is None else selected, self.wanted.epsilons[node.key])

    def record_segment(self, skeleton: Skeleton, segment: Segment) -> None:
        """Records the operations of a float32 run."""
        if not skeleton.configuration.is_reference:
            return
        largest = self.peaks.largest
        for node in segment.nodes:
            abs_max = node.abs_max
            if abs_max and abs_max > largest.get(node.key, 0.0):
                largest[node.key] = abs_max


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


def medium_in(batch: Batch) -> str:
    """What a batch holds: ``text``, ``image``, ``sound`` or ``video``."""
    return batch.probes[0].kind if batch.media else "text"


@dataclass(slots=True, eq=False)
class LogitsWitness(Witness):
    """Compares the logits of every run with those of the original model in float32.

    Args:
        kept: the original's batches and logits, by the names of the batch's probes.
        keeps: this is the original; its first float32 run fills ``kept``.
    """

    kept: dict[tuple[str, ...], tuple[Batch, Tensor]] = field(default_factory=dict)
    keeps: bool = False
    compared: dict[tuple[Dtype, str, str], Compared] = field(default_factory=dict)
    """By dtype, attention implementation, and what the probes are: ``text``, ``image``, ``sound``.
    """

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Keeps the logits of the original, and compares those of every run with them."""
        names = tuple(probe.name for probe in batch.probes)
        if self.keeps and skeleton.configuration.is_reference and names not in self.kept:
            self.kept[names] = (batch, logits.detach().float().cpu().clone())
        if names not in self.kept:
            return
        run = (skeleton.dtype, skeleton.attn_implementation, medium_in(batch))
        compared = self.compared.setdefault(run, Compared())
        compared.add(batch, logits, self.kept[names][1])

    def kept_of(self, medium: str) -> list[tuple[Batch, Tensor]]:
        """What is kept of one medium."""
        return [pair for pair in self.kept.values() if medium_in(pair[0]) == medium]
