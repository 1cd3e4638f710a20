"""How far a run is from its reference, in the two figures its precision is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.records.quantities import nats, percent
from precheck.records.traces import Section

if TYPE_CHECKING:
    from precheck.records.traces import LayerTrace, RunTrace


class Loss(NamedTuple):
    """Mean KL divergence in nats, and the relative error after the last layer.

    Either is None where it was not, or cannot be, measured.
    """

    kl_divergence: float | None
    relative_error: float | None

    @property
    def sentence(self) -> str:
        """The figures in words.

        >>> Loss(0.5, 0.25).sentence
        'mean KL 0.5 nat, relative error 25.0% after the last layer'
        """
        parts = []
        if self.kl_divergence is not None:
            parts.append(f"mean KL {nats(self.kl_divergence)} nat")
        if self.relative_error is not None:
            parts.append(f"relative error {percent(self.relative_error)} after the last layer")
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
    """The figures of a run, over the tokens that can be compared.

    The last layer is the last decoder layer, or the last encoder layer of a model without any.
    """
    decoder = [layer for layer in run.layers if layer.section is Section.DECODER]
    encoder = [layer for layer in run.layers if layer.section is Section.ENCODER]
    last = (decoder or encoder or list(run.layers))[-1:]
    is_routed = any(layer.routing_agreement is not None for layer in run.layers)
    kl_divergence = None
    if run.logits is not None:
        kl_divergence = (
            run.logits.kl_divergence_mean_same_routing
            if is_routed
            else run.logits.kl_divergence_mean
        )
    error = None
    if last:
        error = last[0].relative_error_same_routing if is_routed else last[0].relative_error
    return Loss(kl_divergence, error)
