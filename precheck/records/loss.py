"""How far a run is from its reference, in the two figures its precision is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.records.quantities import nats, percent
from precheck.records.traces import Section

if TYPE_CHECKING:
    from precheck.records.answers import AnswersTrace
    from precheck.records.traces import LayerTrace, RunTrace


@dataclass(frozen=True, slots=True)
class Loss:
    """KL divergence in nats, and the relative error after the last layer.

    Either is None where it was not, or cannot be, measured.
    """

    kl_divergence: float | None
    relative_error: float | None
    is_typical: bool = False
    """The KL divergence is ``kl_divergence_verdict``; else the mean over all tokens."""
    answers: AnswersTrace | None = None
    """Of a model that generates nothing."""

    @property
    def is_unknown(self) -> bool:
        """Whether nothing could be compared."""
        return self.kl_divergence is None and self.relative_error is None

    @property
    def sentence(self) -> str:
        """The figures in words.

        >>> Loss(0.5, 0.25).sentence
        'mean KL 0.5 nat, relative error 25.0% after the last layer'
        >>> Loss(0.5, None, is_typical=True).sentence
        'typical KL 0.5 nat'
        """
        parts = []
        if self.kl_divergence is not None and self.is_typical:
            parts.append(f"typical KL {nats(self.kl_divergence)} nat")
        elif self.kl_divergence is not None:
            parts.append(f"mean KL {nats(self.kl_divergence)} nat")
        if self.relative_error is not None:
            parts.append(f"relative error {percent(self.relative_error)} after the last layer")
        if self.answers is not None and self.answers.sentence:
            parts.insert(0, self.answers.sentence)
        return ", ".join(parts)


def relative_error(layer: LayerTrace) -> float | None:
    """A layer's relative error, of the tokens that can be compared.

    In a mixture of experts these are the tokens that went to the reference's experts: a token
    sent elsewhere is far from the reference without anything being wrong.
    """
    if layer.routing_agreement is not None:
        return layer.relative_error_same_routing
    return layer.relative_error


def loss(run: RunTrace) -> Loss:
    """The figures that a run is judged by, over the tokens that can be compared.

    Of a report that has no figures for each probe, the mean over all tokens counts.
    The last layer is the last decoder layer, or the last encoder layer of a model without any.
    """
    decoder = [layer for layer in run.layers if layer.section is Section.DECODER]
    encoder = [layer for layer in run.layers if layer.section is Section.ENCODER]
    last = (decoder or encoder or list(run.layers))[-1:]
    is_routed = any(layer.routing_agreement is not None for layer in run.layers)
    kl_divergence, is_typical = None, False
    if run.logits is not None and run.logits.kl_by_probe:
        kl_divergence, is_typical = run.logits.kl_divergence_verdict, True
    elif run.logits is not None:
        kl_divergence = (
            run.logits.kl_divergence_mean_same_routing
            if is_routed
            else run.logits.kl_divergence_mean
        )
    error = None
    if last:
        error = last[0].relative_error_same_routing if is_routed else last[0].relative_error
    return Loss(kl_divergence, error, is_typical, run.answers)
