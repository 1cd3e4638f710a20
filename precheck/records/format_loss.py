"""What a format costs: how much, and which parts of the model lose it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from precheck.records.quantities import magnitude, percent


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLoss:
    """What a format costs: the run against the same one without it, over tokens with numbers."""

    kl_divergence: float | None
    """As ``kl_divergence_verdict``: robust, of ordinary inputs and the user's, nats."""
    kl_divergence_max: float | None
    """Of a single token of any probe, nats."""
    top1_agreement: float | None


class Cause(StrEnum):
    """What makes the numbers of a part large."""

    BIAS = "bias"
    """A channel has about the same number in every token, and its projection has a bias."""
    CONSTANT = "constant"
    """The same, without a bias."""
    TOKEN = "token"  # noqa: S105  no password
    """A few tokens are far larger than the others."""
    CHANNEL = "channel"
    """A channel is far larger than the others."""


_WORDS = {
    Cause.BIAS: ", the same in every token: {tensor}",
    Cause.CONSTANT: ", the same in every token",
    Cause.TOKEN: ", in few tokens",
    Cause.CHANNEL: ", far more than the other channels",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatPart:
    """A part of the model that loses accuracy in a format."""

    part: str
    """Keys or values of a layer (``model.layers.3 keys``), or a matrix, by its name."""
    layer: int | None
    kl_divergence: float
    """Against float32 when only this part is stored in the format, nats."""
    abs_max: float
    """The largest number that it has to store."""
    clipped_share: float
    """Share of its numbers that are beyond the largest of the format: a scale would cure them."""
    rounding: float
    """Root mean square of what rounding changed, over the deviation of a channel's numbers from
    their mean: of the median channel, or of ``channel`` if that loses more. A scale does not cure
    it."""
    head: int | None
    """Of keys and values: the head that loses most."""
    channel: int
    """The channel that loses most: of the head, else of the input."""
    cause: Cause | None
    """None where nothing stands out."""
    tensor: str | None = None
    """The parameter behind it: ``model.layers.3.self_attn.k_proj.bias``."""

    @property
    def size(self) -> str:
        """How large it is, where, and why: ``head 0, channel 31 reaches 480, in few tokens``."""
        head = "" if self.head is None else f"head {self.head}, "
        cause = "" if self.cause is None else _WORDS[self.cause].format(tensor=self.tensor)
        return f"{head}channel {self.channel} reaches {magnitude(self.abs_max)}{cause}"

    @property
    def loss(self) -> str:
        """What is lost, by clipping or by rounding, in words."""
        if self.clipped_share:
            return f"{percent(self.clipped_share)} of the numbers are clipped"
        return f"rounding changes {percent(self.rounding)} of what varies"


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatCulprits:
    """Which parts lose what a format costs, found by storing them one by one."""

    kl_divergence: float
    """Of the format on the probes of this search, nats."""
    num_tokens: int
    """Real tokens of these probes."""
    parts: tuple[FormatPart, ...]
    """Gravest first; those that lose a twentieth of it at least."""
    keys_alone: float | None
    """With the keys of all layers stored, and no values; None of weights."""
    values_alone: float | None
    after_stored_prompt: float | None = None
    """Of a cache: of the second halves of the texts, which attend to stored keys and values."""
    after_unstored_prompt: float | None = None
    """The same tokens where the first halves, the prompt, attended to keys and values as they were
    before they were stored."""
    left_out: tuple[str, ...] = ()
    """The layers, or matrices, to leave in the dtype so that the loss is tolerable; empty if none
    are few enough."""
    kl_divergence_left_out: float | None = None
    """Measured with them in the dtype."""

    @property
    def are_one_part(self) -> bool:
        """Whether one part loses at least half of it by itself."""
        return bool(self.parts) and self.parts[0].kl_divergence >= self.kl_divergence / 2
