"""A run's answers against its reference's, for models that generate nothing.

A softmax over one score is always 1, and an embedding has none at all, so neither has a KL
divergence that says anything. What their users do with them is compare: documents are ordered by
a score, texts by their distances. So the error of scores is measured by the spread that they have
across inputs, and embeddings are pooled and normalised as the checkpoint does it, in its dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import normalize

from precheck.records.answers import AnswerKind, AnswersTrace, Pooling

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.probes.batch import Batch
    from precheck.records.answers import Embedding
    from precheck.records.traces import Probe

MOST_SCORES = 1024
"""Heads with more are vocabularies."""

FEWEST_INPUTS = 4
"""Fewer have no spread and no order worth the name."""


@dataclass(slots=True, kw_only=True)
class AnswersTotals:
    """The answer to every probe, and the reference's, ``(scores,)`` or ``(hidden,)`` float64."""

    kind: AnswerKind
    answers: dict[str, tuple[Probe, Tensor, Tensor]] = field(default_factory=dict)

    def add(self, run: Tensor, reference: Tensor, *, batch: Batch) -> None:
        """Adds the answers of a batch, ``(batch, scores)`` or ``(batch, hidden)``, any dtype."""
        for row, probe in enumerate(batch.probes):
            pair = (run[row].double().cpu(), reference[row].double().cpu())
            self.answers[probe.name] = (probe, *pair)

    def merge(self, other: AnswersTotals) -> AnswersTotals:
        """The answers of both sets of batches."""
        return AnswersTotals(kind=self.kind, answers=self.answers | other.answers)

    @property
    def trace(self) -> AnswersTrace | None:
        """The answers as the report holds them; None where too few are finite."""
        finite = [
            (probe, run, reference)
            for probe, run, reference in self.answers.values()
            if bool(run.isfinite().all())
            and bool(reference.isfinite().all())
            and not probe.is_for_range
        ]
        judged = [each for each in finite if each[0].is_judged]
        counting = judged if len(judged) >= FEWEST_INPUTS else finite
        if len(counting) < FEWEST_INPUTS:
            return None
        run = torch.stack([each[1] for each in counting])
        reference = torch.stack([each[2] for each in counting])
        compare = _scores if self.kind is AnswerKind.SCORES else _embeddings
        return compare(run, reference)


def scores_of(logits: Tensor, batch: Batch) -> Tensor | None:
    """The scores of whole inputs in a head's output, ``(batch, scores)``; None for other heads."""
    is_of_inputs = logits.dim() == 2 and logits.shape[0] == len(batch.probes)  # noqa: PLR2004
    return logits if is_of_inputs and logits.shape[-1] <= MOST_SCORES else None


def embeddings_of(hidden_states: Tensor, batch: Batch, embedding: Embedding) -> Tensor | None:
    """Pooled hidden states ``(batch, hidden)``, in their dtype; None of another shape.

    Args:
        hidden_states: ``(batch, seq, hidden)``.
        batch: the probes; padding is left out.
        embedding: how the checkpoint pools.
    """
    mask = batch.real_tokens.mask
    if hidden_states.dim() != 3 or hidden_states.shape[:2] != batch.input_ids.shape:  # noqa: PLR2004
        return None
    rows = [
        states if mask is None else states[mask[row]] for row, states in enumerate(hidden_states)
    ]
    pooled = torch.stack([_pooled(states, embedding.pooling) for states in rows])
    return normalize(pooled, dim=-1) if embedding.is_normalised else pooled


def _pooled(states: Tensor, pooling: Pooling) -> Tensor:
    if pooling is Pooling.CLS:
        return states[0]
    if pooling is Pooling.LAST:
        return states[-1]
    return states.amax(dim=0) if pooling is Pooling.MAX else states.mean(dim=0)


def _scores(run: Tensor, reference: Tensor) -> AnswersTrace:
    spread = reference.var(dim=0, correction=0).mean().sqrt()
    error = (run - reference).square().mean().sqrt()
    above, below = torch.triu_indices(len(run), len(run), offset=1)
    expected = (reference[above, 0] - reference[below, 0]).sign()
    order = (run[above, 0] - run[below, 0]).sign()
    is_ordered = expected != 0
    agrees = (order == expected)[is_ordered].double()
    return AnswersTrace(
        kind=AnswerKind.SCORES,
        num_inputs=len(run),
        error=float(error / spread) if spread > 0 else None,
        order_agreement=float(agrees.mean()) if agrees.numel() else None,
        num_distinct=run[:, 0].unique().numel(),
        reference_num_distinct=reference[:, 0].unique().numel(),
    )


def _embeddings(run: Tensor, reference: Tensor) -> AnswersTrace:
    norms = reference.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    own, expected = normalize(run, dim=-1), normalize(reference, dim=-1)
    agrees = _nearest(own) == _nearest(expected)
    return AnswersTrace(
        kind=AnswerKind.EMBEDDINGS,
        num_inputs=len(run),
        error=float(((run - reference).norm(dim=-1) / norms).mean()),
        order_agreement=float(agrees.double().mean()),
        cosine_min=float((own * expected).sum(dim=-1).min()),
    )


def _nearest(unit: Tensor) -> Tensor:
    """For each of the unit vectors, the index of the nearest other one."""
    cosines = unit @ unit.T
    return cosines.fill_diagonal_(-torch.inf).argmax(dim=-1)
