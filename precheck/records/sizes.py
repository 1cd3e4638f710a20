"""How a model attends, what it takes in memory, and how large its keys and values are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from precheck.records.traces import Section

E4M3_MAX = 448.0
"""Largest finite value of float8 e4m3, as engines store keys and values in.

**Source**: OCP 8-bit floating point specification, https://arxiv.org/abs/2209.05433; a test equates
it with ``torch.finfo``.
"""
E4M3_ROUNDING = 2.0**-4
"""Half a step between neighbours, as a share of the number, at most: three bits are stored."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyBias:
    """What a projection adds to the keys of every token, whatever the token is."""

    name: str
    """The parameter: ``model.layers.0.self_attn.k_proj.bias``."""
    abs_max: float
    norm: float
    """Euclidean, over all heads; of the part that makes keys, where it makes queries too."""
    head_norm: float | None
    """The largest of one head's part; None if the heads are not told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValueRange:
    """The largest magnitudes of one attention at real tokens, in the float32 runs.

    None where the data flow does not show a tensor: it is then part of a larger one, or compressed;
    and where nothing was run.
    """

    layer: int | None
    section: Section
    module: str
    """Where the scores are computed: ``model.layers.0.self_attn``."""
    query: float | None
    """After RoPE and normalisation, as it meets the keys, and so is ``key``.

    Where RoPE rotates a part of each head, of that part.
    """
    projected_key: float | None
    """With its bias, before RoPE and normalisation."""
    key: float | None
    value: float | None
    head_dim: int | None
    is_key_normalised: bool
    """The projected key is normalised, so that a bias does not make it large."""
    key_bias: KeyBias | None = None
    """None where the projection adds none."""

    @property
    def score_rounding(self) -> float | None:
        """How far a cache in e4m3 moves a score because of the bias alone, in nats at most.

        The bias is in the key of every token, so it is rounded with every one, each time in another
        place where RoPE turns it or the rest of the key differs. A query meets it in all channels
        of a head. None where one of them is not known, and behind a normalisation.
        """
        return None if self.query is None else self.score_rounding_of(self.query)

    def score_rounding_of(self, query: float) -> float | None:
        """The same with queries up to a magnitude."""
        bias, head_dim = self.key_bias, self.head_dim
        if self.is_key_normalised or bias is None or bias.head_norm is None or head_dim is None:
            return None
        return E4M3_ROUNDING * bias.head_norm * query / math.sqrt(head_dim)

    @property
    def is_beyond_e4m3(self) -> bool:
        """Whether a key or a value does not fit into e4m3 at scale 1."""
        return max(self.key or 0.0, self.value or 0.0) > E4M3_MAX
