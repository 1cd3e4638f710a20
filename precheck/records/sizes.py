"""How a model attends, what it takes in memory, and how large what its kernels read becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

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

    def score_rounding_of(self, query: float) -> float | None:
        """How far a cache in e4m3 moves a score because of the bias alone, in nats at most.

        The bias is in the key of every token, so it is rounded with every one, each time in another
        place where RoPE turns it or the rest of the key differs. A query meets it in all channels
        of a head. None where the bias or the head is not known, and behind a normalisation.

        Args:
            query: the largest magnitude of queries.
        """
        bias, head_dim = self.key_bias, self.head_dim
        if self.is_key_normalised or bias is None or bias.head_norm is None or head_dim is None:
            return None
        return E4M3_ROUNDING * bias.head_norm * query / math.sqrt(head_dim)

    @property
    def is_beyond_e4m3(self) -> bool:
        """Whether a key or a value does not fit into e4m3 at scale 1."""
        return max(self.key or 0.0, self.value or 0.0) > E4M3_MAX


class Operand(StrEnum):
    """A figure that decides whether some kernel leaves float16; in the float32 run, real tokens."""

    LINEAR_INPUT = "linear_input"
    """The largest number that a linear layer reads."""
    SUM_OF_32 = "sum_of_32"
    """The largest sum of 32 neighbours among what a linear layer reads, aligned to 32."""
    ABS_SUM_OF_128 = "abs_sum_of_128"
    """The largest sum of the magnitudes of 128 neighbours, aligned to 128."""
    EXPERT_INPUT = "expert_input"
    """The largest number that a linear layer of an expert reads."""
    LINEAR_OUTPUT = "linear_output"
    """The largest result of a linear layer."""
    BRANCH = "branch"
    """The largest result of the last linear layer before a residual add, experts summed up."""
    NORM_MEAN_SQUARE = "norm_mean_square"
    """The largest mean of squares that a norm of the residual stream forms, of one token."""
    SCORES = "scores"
    """The largest attention score, scaled, before softcap and mask.

    Of fused attention, in batches without padding.
    """
    QUERY_KEY_PRODUCT = "query_key_product"
    """The largest product of one channel of a query and a key, before scaling; without padding."""
    VALUE_SUM = "value_sum"
    """The largest sum of values that attention forms before it divides by the sum of weights.

    The weights are relative to the largest of a query, so n equal scores sum n values. Fused
    attention: recorded only where the number of keys times the largest value exceeds float16.
    """
    WEIGHT = "weight"
    """The largest stored weight; in the report's ``checkpoint``, not among its operands."""

    def sentence(self, module: str, value: str) -> str:
        """What becomes large where.

        >>> Operand.LINEAR_INPUT.sentence("layers.3.mlp.down_proj", "160,000")
        'layers.3.mlp.down_proj reads up to 160,000'
        """
        return _SENTENCES[self].format(module=module, value=value)


_SENTENCES = {
    Operand.LINEAR_INPUT: "{module} reads up to {value}",
    Operand.SUM_OF_32: "32 neighbours that {module} reads add up to {value}",
    Operand.ABS_SUM_OF_128: "magnitudes of 128 neighbours that {module} reads add up to {value}",
    Operand.EXPERT_INPUT: "experts in {module} read up to {value}",
    Operand.LINEAR_OUTPUT: "{module} gives up to {value}",
    Operand.BRANCH: "{module} adds up to {value} to the residual stream",
    Operand.NORM_MEAN_SQUARE: "{module} takes a mean of squares of {value}",
    Operand.SCORES: "scaled scores in {module} reach {value}",
    Operand.QUERY_KEY_PRODUCT: "one channel of a query and a key in {module} multiply to {value}",
    Operand.VALUE_SUM: "values in {module} add up to {value} before they are divided",
    Operand.WEIGHT: "{module} has a weight of {value}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandPeak:
    """How large an operand becomes in one layer."""

    operand: Operand
    layer: int | None
    """None outside of all layers."""
    section: Section
    module: str
    """Where it is largest; an input that several linear layers read is the first one's."""
    value: float
