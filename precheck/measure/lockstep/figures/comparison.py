"""Compares the values of one run over one batch with the baseline's: layers, routing, logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.measure.lockstep.figures.answers import AnswersTotals, embeddings_of, scores_of
from precheck.measure.lockstep.figures.logits import LogitsTotals
from precheck.measure.lockstep.figures.routing import SameRouting
from precheck.records.answers import AnswerKind

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.blame.located_producer import Location
    from precheck.measure.blame.unit_call import UnitCall
    from precheck.measure.lockstep.figures.run_totals import RunTotals
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.records.answers import Embedding


class Comparison:
    """Compares a run with its baseline, unit by unit and then the logits.

    Args:
        totals: where the figures are added.
        skeleton: the run's model.
        batch: the probes, on the run's device.
        layout: the model's units.
        embedding: what is done with the hidden states of a model without a head.
    """

    def __init__(
        self,
        *,
        totals: RunTotals,
        skeleton: Skeleton,
        batch: Batch,
        layout: Architecture,
        embedding: Embedding,
    ) -> None:
        self._totals = totals
        self._batch = batch
        self._embedding = embedding
        self._real_tokens = batch.real_tokens
        self._is_causal = layout.is_causal
        self._predicts_input = layout.is_causal and not skeleton.is_encoder_decoder
        self._same_routing = SameRouting(batch, is_causal=layout.is_causal)

    def add_unit(self, call: UnitCall, baseline: UnitCall | None, location: Location) -> None:
        """Adds the output of a unit, and which tokens its router sent elsewhere.

        Args:
            call: the unit as the run called it.
            baseline: the same unit as the baseline called it; None without one.
            location: of the unit.
        """
        routing = self._same_routing
        if call.unit.is_block:
            routing.enter(location.section)
        agrees = None
        if baseline is not None:
            agrees = routing.add(call.segment, baseline.segment, location.section)
        hidden = call.hidden_states
        if hidden is None or location.layer is None:
            return
        expected = None if baseline is None else baseline.hidden_states
        self._totals.add_layer(
            index=location.layer,
            section=location.section,
            module=call.unit.name,
            tokens=self._real_tokens.tokens(hidden),
            reference=None if expected is None else self._real_tokens.tokens(expected),
            same_routing=routing.tokens,
            agrees=agrees,
        )

    def add_logits(self, logits: Tensor, baseline: Tensor | None) -> None:
        """Adds the logits ``(batch, seq, vocab)``, any dtype, next to the baseline's."""
        self._totals.logits = self._totals.logits or LogitsTotals()
        self._totals.logits.add(
            logits,
            baseline,
            batch=self._batch,
            is_causal=self._predicts_input,
            same_routing=self._same_routing.rows,
            positions=self._totals.positions,
        )

    def add_format_loss(self, logits: Tensor, unformatted: Tensor) -> None:
        """Adds the logits ``(batch, seq, vocab)`` next to those of the run without the format."""
        self._totals.format_loss = self._totals.format_loss or LogitsTotals()
        self._totals.format_loss.add(
            logits,
            unformatted,
            batch=self._batch,
            is_causal=False,  # the perplexities are known
            same_routing=self._same_routing.rows,
        )

    def add_answers(self, output: Tensor, baseline: Tensor, *, has_logits: bool) -> None:
        """Adds the scores or embeddings of a model that generates nothing.

        Args:
            output: logits, or hidden states ``(batch, seq, hidden)``, any dtype.
            baseline: the same of the baseline.
            has_logits: the model has a head.
        """

        def answer(tensor: Tensor) -> Tensor | None:
            if has_logits:
                return scores_of(tensor, self._batch)
            return embeddings_of(tensor, self._batch, self._embedding)

        run, reference = answer(output), answer(baseline)
        if run is None or reference is None:
            return
        kind = AnswerKind.SCORES if has_logits else AnswerKind.EMBEDDINGS
        self._totals.answers = self._totals.answers or AnswersTotals(kind=kind)
        self._totals.answers.add(run, reference, batch=self._batch)
