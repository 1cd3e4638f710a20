"""A run's logits against its reference's: KL divergence, first choices, perplexity, in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.measure.lockstep.figures.layers import CHUNK_ELEMENTS, Mean, float64, merged
from precheck.measure.lockstep.figures.text_divergence import TextDivergence
from precheck.records.format_loss import FormatLoss
from precheck.records.stats import TensorStats
from precheck.records.traces import ODD_START, Divergence, LogitsTrace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from precheck.measure.lockstep.figures.positions import PositionTotals
    from precheck.measure.probes.batch import Batch
    from precheck.records.traces import Probe


@dataclass(slots=True)
class LogitsTotals:
    """Statistics of a run's logits over a batch, against its reference's."""

    stats: TensorStats = field(default_factory=TensorStats)
    kl: Mean = field(default_factory=Mean)
    kl_max: float | None = None
    kl_same_routing: Mean | None = None
    texts: TextDivergence = field(default_factory=TextDivergence)
    """Of the tokens that can be compared: those that every router sent to the same experts."""
    agreement: Mean = field(default_factory=Mean)
    loss: Mean = field(default_factory=Mean)
    reference_loss: Mean = field(default_factory=Mean)
    divergence: Divergence | None = None
    has_choice: bool = True
    """There is more than one score: the softmax of one is 1, whatever it is."""

    def add(
        self,
        logits: Tensor,
        reference: Tensor | None,
        *,
        batch: Batch,
        is_causal: bool,
        same_routing: Sequence[Tensor] | None,
        positions: PositionTotals | None = None,
    ) -> None:
        """Adds a batch's logits ``(batch, seq, vocab)`` or ``(batch, labels)``, any dtype.

        Args:
            logits: the run's.
            reference: the logits to compare them with, of the same shape; None without any.
            batch: the probes.
            is_causal: a position predicts the next token of the input, so that its loss is known.
            same_routing: of each probe, real tokens, ``(tokens,)`` bool, that every router sent
                to the experts that the reference's sent them to; None without a router.
            positions: the figures are added there too, by position.
        """
        targets = _targets(batch, logits) if is_causal else None
        self.has_choice = logits.shape[-1] > 1
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
            has_text = targets is not None and probe.kind not in {"token_ids", ODD_START}
            next_tokens = targets[row][keep] if has_text and targets is not None else None
            same = None if same_routing is None else same_routing[row]
            if same is not None and same.numel() != scores.shape[0]:  # scores of a whole text
                same = same.all().expand(scores.shape[0])
            self._add_row(
                scores,
                expected,
                next_tokens,
                same,
                probe,
                first=batch.first_position,
                by_position=positions if _is_per_position(logits, batch) else None,
            )

    def _add_row(
        self,
        logits: Tensor,
        reference: Tensor,
        next_tokens: Tensor | None,
        same: Tensor | None,
        probe: Probe,
        *,
        first: int,
        by_position: PositionTotals | None,
    ) -> None:
        step = max(1, CHUNK_ELEMENTS // logits.shape[-1])
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            positions = labels = torch.empty(0, dtype=torch.long, device=logits.device)
            if next_tokens is not None:
                positions = (next_tokens[part] >= 0).nonzero().squeeze(-1)
                labels = next_tokens[part][positions]
            scores = Scores.of(logits[part], reference[part], positions, labels)
            kl = scores.kl.cpu()
            self._add_kl(kl, None if same is None else same[part])
            self.texts.add(probe, kl if same is None else kl[same[part]])
            self.agreement.add(scores.agrees[scores.is_finite].double())
            self._add_divergence(scores.agrees, probe.name, first + start)
            if by_position is not None:
                same_here = None if same is None else same[part].cpu()
                by_position.add_tokens(first + start, kl, scores.agrees.cpu(), same_here)
            both_finite = scores.loss.isfinite() & scores.reference_loss.isfinite()
            self.loss.add(scores.loss[both_finite])
            self.reference_loss.add(scores.reference_loss[both_finite])

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
            texts=self.texts.merge(other.texts),
            has_choice=self.has_choice,
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
            kl_divergence_mean=self.kl.value if self.has_choice else None,
            kl_divergence_max=self.kl_max if self.has_choice else None,
            kl_divergence_mean_same_routing=(
                same.value if same is not None and self.has_choice else None
            ),
            kl_by_probe=self.texts.means if self.has_choice else {},
            kl_divergence_verdict=self.texts.verdict if self.has_choice else None,
            top1_agreement=self.agreement.value if self.has_choice else None,
            perplexity=_perplexity(self.loss),
            reference_perplexity=_perplexity(self.reference_loss),
            first_greedy_divergence=self.divergence,
        )

    @property
    def loss_of_format(self) -> FormatLoss:
        """The logits as what a format costs."""
        return FormatLoss(
            kl_divergence=self.texts.verdict,
            kl_divergence_max=self.kl_max,
            top1_agreement=self.agreement.value,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Log probabilities next to those of a reference; a NaN in a row makes its figures NaN.

    Two arrays of float64 are made of each and used again: with a vocabulary of 152k, what is
    written and read costs more than the exponentials.
    """

    kl: Tensor
    """KL(reference || run) of each token, ``(tokens,)`` float64, nats."""
    agrees: Tensor
    """Whether the first choice is the same, ``(tokens,)`` bool."""
    is_finite: Tensor
    """Whether the run has probabilities, ``(tokens,)`` bool."""
    loss: Tensor
    """Negative log likelihood of the labels, nats, ``(labels,)``."""
    reference_loss: Tensor

    @classmethod
    def of(cls, logits: Tensor, reference: Tensor, positions: Tensor, labels: Tensor) -> Scores:
        """Compares ``(tokens, vocab)`` logits in any dtype.

        The KL is never negative: where both are the same, rounding leaves about 1e-16 of either
        sign, which is clamped. The difference of the normalisers is subtracted before the sum, so
        that no large terms cancel after it.

        Args:
            logits: the run's.
            reference: what they are compared with.
            positions: tokens whose successor is known, int64.
            labels: those successors.
        """
        run, expected = _copy_in_float64(logits), _copy_in_float64(reference)
        top1 = logits.argmax(dim=-1).to(run.device)
        expected_top1 = reference.argmax(dim=-1).to(run.device)
        at_labels, expected_at_labels = run[positions, labels], expected[positions, labels]
        distance = expected - run
        _, normaliser = _exponentials(run, top1)
        weights, expected_normaliser = _exponentials(expected, expected_top1)
        distance.sub_((expected_normaliser - normaliser).unsqueeze(-1))
        total = weights.sum(dim=-1)
        kl = torch.linalg.vecdot(weights, distance) / total
        if not bool(kl.isfinite().all()):
            # a token that the reference gives probability 0 (log p = -inf) contributes nothing
            distance.masked_fill_(weights == 0, 0.0)
            kl = torch.linalg.vecdot(weights, distance) / total
        return cls(
            kl=kl.clamp(min=0.0),
            agrees=top1 == expected_top1,
            is_finite=normaliser.isfinite(),
            loss=normaliser[positions] - at_labels,
            reference_loss=expected_normaliser[positions] - expected_at_labels,
        )


def _copy_in_float64(logits: Tensor) -> Tensor:
    values = float64(logits)
    return values.clone() if values is logits else values


def _exponentials(values: Tensor, top1: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(values - largest)``, in their memory, and the log of the sum of ``exp(values)``."""
    largest = values.gather(-1, top1.unsqueeze(-1))
    weights = values.sub_(largest).exp_()
    return weights, largest.squeeze(-1) + weights.sum(dim=-1).log()


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
    targets = torch.cat([batch.input_ids[:, 1:], no_token], dim=1)
    # Mllama has tokens for images that its head does not score
    return targets.where(targets < logits.shape[-1], -1)


def _is_per_position(logits: Tensor, batch: Batch) -> bool:
    """Whether there are scores for every position: ``(batch, seq, vocab)``."""
    return logits.dim() == 3 and logits.shape[:2] == batch.input_ids.shape  # noqa: PLR2004
