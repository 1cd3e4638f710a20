"""What no text exceeds in a decoder layer, proved from the norms in it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerBound:
    """Upper bounds of one decoder layer in float16, over all texts; None where nothing bounds it.

    Each of them takes for granted that what a norm reads is finite.
    """

    layer: int
    scores: float | None = None
    """Of attention scores as eager attention materialises them, before a scaling that comes after.

    ``sqrt(n_q n_k) max|g_q| max|g_k|`` after norms of queries and keys over n channels with
    weights g, up to rounding; a LayerNorm's bias adds to it.
    """
    scaled_scores: float | None = None
    """Of attention scores as the model scales them: what an engine that scales queries forms."""
    added: float | None = None
    """Of what the layer adds to a channel of the residual stream, where a norm comes before it."""
    added_so_far: float | None = None
    """Of what this layer and those before it add to a channel."""
    residual: float | None = None
    """Of the residual stream after the layer; only where the embedding is known."""
