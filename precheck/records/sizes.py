"""How a model attends and what it takes in memory, read from its config and its class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionFacts:
    """What decides which attention implementations a model can have; of its text part."""

    supported: tuple[str, ...]
    """Implementations that the class announces, by transformers' names."""
    flash_kernels: tuple[str, ...] | None = None
    """The only FlashAttention implementations it works with; None: any."""
    num_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    """The largest, where layers differ."""
    value_head_dim: int | None = None
    softcap: float | None = None
    """Scores are ``softcap * tanh(scores / softcap)``."""
    sliding_window: int | None = None
    has_sinks: bool = False
    """Learned logits that take part in the softmax."""
    is_causal: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """Elements of the key-value cache of one sequence, of all layers together.

    Measured on transformers' own cache in a test (``tests/measure/subject/test_footprint.py``).
    Engines that keep multi-head latent attention compressed take less.
    """

    elements_per_token: int
    """Of layers that keep every token."""
    windowed_elements_per_token: int = 0
    """Of layers that keep the last ``window`` tokens."""
    window: int = 0
    fixed_elements: int = 0
    """Of layers that keep a state, whatever the length."""

    def keys_and_values(self, num_tokens: int) -> int:
        """Elements of keys and values after so many tokens; states are left out."""
        in_windows = self.windowed_elements_per_token * min(num_tokens, self.window)
        return self.elements_per_token * num_tokens + in_windows


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """What decides the memory of weights in a format, and of a forward besides its cache."""

    hidden: int
    """Elements of a token in the residual stream."""
    widest: int
    """Elements of a token in the widest linear layer, the head left out."""
    vocabulary: int
    layer_weights: int | None = None
    """Elements of the matrices of decoder and encoder layers: what a format of weights stores.

    None in reports of earlier versions.
    """
