"""Compares the values of one run over one batch with the baseline's: layers, routing, logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.lockstep.layers import routing_agreement
from precheck.measure.lockstep.logits import LogitsTotals

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.blame.located_producer import Location
    from precheck.measure.blame.unit_call import UnitCall
    from precheck.measure.lockstep.run_totals import RunTotals
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.segment import Segment


class Comparison:
    """Compares a run with its baseline, unit by unit and then the logits.

    Args:
        totals: where the figures are added.
        skeleton: the run's model.
        batch: the probes, on the run's device.
        layout: the model's units.
    """

    def __init__(
        self, *, totals: RunTotals, skeleton: Skeleton, batch: Batch, layout: Architecture
    ) -> None:
        self._totals = totals
        self._batch = batch
        self._real_tokens = batch.real_tokens
        self._is_causal = layout.is_causal
        self._predicts_input = layout.is_causal and not skeleton.is_encoder_decoder
        self._same_routing: Tensor | None = None
        """Real tokens, ``(tokens,)`` bool, that every router so far sent to the experts that the
        baseline's sent them to; None before the first router."""

    def add_unit(self, call: UnitCall, baseline: UnitCall | None, location: Location) -> None:
        """Adds the output of a unit, and which tokens its router sent elsewhere.

        Args:
            call: the unit as the run called it.
            baseline: the same unit as the baseline called it; None without one.
            location: of the unit.
        """
        if call.unit.is_block and self._same_routing is not None:
            self._same_routing = self._unreached(self._same_routing)
        agrees = None if baseline is None else self._routing(call.segment, baseline.segment)
        if agrees is not None:
            self._same_routing = (
                agrees if self._same_routing is None else self._same_routing & agrees
            )
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
            same_routing=self._same_routing,
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
            same_routing=self._same_routing,
        )

    def _unreached(self, same_routing: Tensor) -> Tensor:
        """Leaves out tokens that attend to one that an earlier router sent elsewhere."""
        if same_routing.numel() != self._batch.num_real_tokens:
            return same_routing
        rows = same_routing.split([probe.num_tokens for probe in self._batch.probes])
        if self._is_causal:
            return torch.cat([row.long().cummin(dim=0).values.bool() for row in rows])
        return torch.cat([row.all().expand_as(row) for row in rows])

    def _routing(self, segment: Segment, baseline: Segment) -> Tensor | None:
        """Real tokens that the unit's router sent to the same experts; None without a router."""
        if not segment.routes or not baseline.routes:
            return None
        if segment.routes[-1].shape != baseline.routes[-1].shape:
            return None
        agrees = routing_agreement(segment.routes[-1], baseline.routes[-1])
        if agrees.numel() != self._batch.input_ids.numel():
            return None
        mask = self._batch.attention_mask
        return agrees if mask is None else agrees[mask.flatten().bool().cpu()]
