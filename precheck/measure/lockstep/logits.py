"""A run's logits against its reference's: KL divergence, first choices, perplexity, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.measure.lockstep.layers import CHUNK_ELEMENTS, Mean, float64, merged
from precheck.records.stats import TensorStats
from precheck.records.traces import Divergence, LogitsTrace

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.probes.batch import Batch


@dataclass(slots=True)
class LogitsTotals:
    """Statistics of a run's logits over a batch, against its reference's."""

    stats: TensorStats = field(default_factory=TensorStats)
    kl: Mean = field(default_factory=Mean)
    kl_max: float | None = None
    kl_same_routing: Mean | None = None
    agreement: Mean = field(default_factory=Mean)
    loss: Mean = field(default_factory=Mean)
    reference_loss: Mean = field(default_factory=Mean)
    divergence: Divergence | None = None

    def add(
        self,
        logits: Tensor,
        reference: Tensor | None,
        *,
        batch: Batch,
        is_causal: bool,
        same_routing: Tensor | None,
    ) -> None:
        """Adds a batch's logits ``(batch, seq, vocab)`` or ``(batch, labels)``, any dtype.

        Args:
            logits: the run's.
            reference: the logits to compare them with, of the same shape; None without any.
            batch: the probes.
            is_causal: a position predicts the next token of the input, so that its loss is known.
            same_routing: real tokens, ``(tokens,)`` bool, that every router sent to the experts
                that the reference's sent them to; None without a router.
        """
        targets = _targets(batch, logits) if is_causal else None
        real = batch.real_tokens
        for row, probe in enumerate(batch.probes):
            keep = slice(None)
            if real.mask is not None and _is_per_position(logits, batch):
                keep = slice(int((~real.mask[row]).sum()), None)
            scores = logits[row : row + 1].reshape(-1, logits.shape[-1])[keep]
            self.stats = self.stats.merge(tensor_stats(scores))
            if reference is None:
                continue
            expected = reference[row : row + 1].reshape(-1, logits.shape[-1])[keep]
            has_text = targets is not None and probe.kind != "token_ids"
            next_tokens = targets[row][keep] if has_text and targets is not None else None
            same = None
            if same_routing is not None and same_routing.numel() == batch.num_real_tokens:
                same = same_routing[batch.real_offset(row) :][: scores.shape[0]]
            self._add_row(scores, expected, next_tokens, same, probe.name)

    def _add_row(
        self,
        logits: Tensor,
        reference: Tensor,
        next_tokens: Tensor | None,
        same: Tensor | None,
        probe: str,
    ) -> None:
        step = max(1, CHUNK_ELEMENTS // logits.shape[-1])
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            run, expected = Scores.of(logits[part]), Scores.of(reference[part])
            self._add_kl(kl_divergence(expected, run).cpu(), None if same is None else same[part])
            agrees = run.top1 == expected.top1
            self.agreement.add(agrees[run.normaliser.isfinite()].double())
            self._add_divergence(agrees, probe, start)
            if next_tokens is not None:
                self._add_loss(run, expected, next_tokens[part])

    def _add_kl(self, kl: Tensor, same: Tensor | None) -> None:
        self.kl.add(kl)
        if same is not None:
            self.kl_same_routing = self.kl_same_routing or Mean()
            self.kl_same_routing.add(kl[same])
        finite = kl[kl.isfinite()]
        if finite.numel():
            self.kl_max = max(float(finite.max()), self.kl_max or 0.0)

    def _add_divergence(self, agrees: Tensor, probe: str, start: int) -> None:
        differing = (~agrees).nonzero()
        if differing.numel() == 0:
            return
        position = start + int(differing[0])
        if self.divergence is None or position < self.divergence.position:
            self.divergence = Divergence(probe=probe, position=position)

    def _add_loss(self, run: Scores, reference: Scores, next_tokens: Tensor) -> None:
        positions = (next_tokens >= 0).nonzero().squeeze(-1)
        labels = next_tokens[positions]
        loss, expected = run.loss(positions, labels), reference.loss(positions, labels)
        both_finite = loss.isfinite() & expected.isfinite()
        self.loss.add(loss[both_finite])
        self.reference_loss.add(expected[both_finite])

    def merge(self, other: LogitsTotals) -> LogitsTotals:
        """The statistics of both sets of batches."""
        maxima = [kl for kl in (self.kl_max, other.kl_max) if kl is not None]
        both = (self.divergence, other.divergence)
        divergences = [divergence for divergence in both if divergence is not None]
        return LogitsTotals(
            stats=self.stats.merge(other.stats),
            kl=self.kl.merge(other.kl),
            kl_max=max(maxima, default=None),
            kl_same_routing=merged(self.kl_same_routing, other.kl_same_routing),
            agreement=self.agreement.merge(other.agreement),
            loss=self.loss.merge(other.loss),
            reference_loss=self.reference_loss.merge(other.reference_loss),
            divergence=min(divergences, key=lambda divergence: divergence.position, default=None),
        )

    @property
    def trace(self) -> LogitsTrace:
        """The logits as the report holds them."""
        same = self.kl_same_routing
        return LogitsTrace(
            abs_max=self.stats.abs_max,
            num_nonfinite=self.stats.num_nonfinite,
            kl_divergence_mean=self.kl.value,
            kl_divergence_max=self.kl_max,
            kl_divergence_mean_same_routing=None if same is None else same.value,
            top1_agreement=self.agreement.value,
            perplexity=_perplexity(self.loss),
            reference_perplexity=_perplexity(self.reference_loss),
            first_greedy_divergence=self.divergence,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Logits in float64 with their normaliser; a NaN in a row makes its normaliser NaN."""

    values: Tensor
    """``(tokens, vocab)`` float64."""
    weights: Tensor
    """``exp(values - max)``, the same shape."""
    normaliser: Tensor
    """Log of the sum of exponentials, ``(tokens,)``."""
    top1: Tensor
    """Index of the largest, ``(tokens,)``."""

    @classmethod
    def of(cls, logits: Tensor) -> Scores:
        """Scores of ``(tokens, vocab)`` logits in any dtype."""
        values = float64(logits)
        largest = values.amax(dim=-1, keepdim=True)
        weights = (values - largest).exp_()
        return cls(
            values=values,
            weights=weights,
            normaliser=largest.squeeze(-1) + weights.sum(dim=-1).log(),
            top1=logits.argmax(dim=-1),
        )

    def loss(self, positions: Tensor, labels: Tensor) -> Tensor:
        """Negative log likelihood of ``labels`` at ``positions``, nats."""
        return self.normaliser[positions] - self.values[positions, labels]


def kl_divergence(reference: Scores, run: Scores) -> Tensor:
    """KL(reference || run) per token, ``(tokens,)`` float64, nats.

    It is never negative: where both are the same, rounding leaves about 1e-16 of either sign, which
    is clamped. The difference of the normalisers is subtracted before the sum, so that no large
    terms cancel after it.
    """
    shift = (reference.normaliser - run.normaliser).unsqueeze(-1)
    distance = (reference.values - run.values).sub_(shift)
    total = reference.weights.sum(dim=-1)
    kl = (reference.weights * distance).sum(dim=-1) / total
    if not bool(kl.isfinite().all()):
        # a token to which the reference gives probability 0 (log p = -inf) contributes nothing
        impossible = reference.weights == 0
        kl = (reference.weights * distance.masked_fill(impossible, 0.0)).sum(dim=-1) / total
    return kl.clamp(min=0.0)


def _perplexity(loss: Mean) -> float | None:
    """Exp of the mean loss; None where that is beyond float64."""
    if loss.value is None or loss.value > math.log(1.7e308):
        return None
    return math.exp(loss.value)


def _targets(batch: Batch, logits: Tensor) -> Tensor | None:
    """The token that each position predicts, -1 where there is none: ``(batch, seq)``."""
    if not _is_per_position(logits, batch):
        return None
    no_token = torch.full_like(batch.input_ids[:, :1], -1)
    return torch.cat([batch.input_ids[:, 1:], no_token], dim=1)


def _is_per_position(logits: Tensor, batch: Batch) -> bool:
    """Whether there are scores for every position: ``(batch, seq, vocab)``."""
    return logits.dim() == 3 and logits.shape[:2] == batch.input_ids.shape  # noqa: PLR2004
