"""What was measured: one trace a run, and the headroom of every mechanism."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from precheck.records.answers import AnswersTrace
from precheck.records.configuration import Configuration
from precheck.records.format_loss import FormatCulprits, FormatLoss
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.every_prompt import ProofStatus, RunProof
from precheck.records.outcomes.positions import PositionFigures, PositionRounding
from precheck.records.precision import Accumulation, Arithmetic, Dtype


class Section(StrEnum):
    """Which part of the model something belongs to."""

    DECODER = "decoder"
    ENCODER = "encoder"
    VISION = "vision"
    AUDIO = "audio"
    PROJECTOR = "projector"
    HEAD = "head"


TOWERS = frozenset({Section.VISION, Section.AUDIO, Section.PROJECTOR})
"""What only images and sounds pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """A producer: an operation that made unexpected elements out of clean inputs."""

    module: str
    layer: int | None
    section: Section
    op: str
    source: str
    """Base name of the file and line, ``modeling_qwen2.py:155``."""
    source_file: str | None = None
    """Where the file lies on Python's path, ``transformers/models/qwen2/modeling_qwen2.py``."""
    code: str
    """The text of that line, stripped."""
    mechanism: Mechanism
    reference_abs_max: float | None
    """Largest finite magnitude of the matching float32 output: what the op needed to hold."""
    limit: float
    """Largest finite value of the dtype the op ran in."""
    num_elements: int
    """How many elements became unexpected, over all probes."""
    probes: tuple[str, ...]
    """Names of the probes in which it happened."""
    first_positions: dict[str, int] = field(default_factory=dict)
    """By probe, the first of its real tokens (from 0) at which it happened, where that is known."""
    partial_sum: float | None = None
    """Of an overflow inside a product: how large its partial sums can become, ``|x| @ |w|``."""
    absorbed: bool
    """None of the unexpected elements left the decoder layer, or reached a real token's output."""

    @property
    def is_out_of_range(self) -> bool:
        """Whether the value itself does not fit: a fully masked row makes NaN of small numbers."""
        return self.reference_abs_max is not None and self.reference_abs_max > self.limit

    @property
    def place(self) -> str | None:
        """``layer 3``, with its part where that is not the decoder; None outside all layers."""
        if self.layer is None:
            return None
        part = "" if self.section is Section.DECODER else f"{self.section} "
        return f"{part}layer {self.layer}"

    @property
    def event(self) -> str:
        """What happened, in words."""
        if self.mechanism is Mechanism.MASK and not self.is_out_of_range:
            return "NaN from a fully masked row"
        return f"overflow of {self.mechanism.phrase}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTrace:
    """A decoder layer's output, over real tokens of every probe."""

    index: int
    section: Section
    module: str
    abs_max: float | None
    num_nan: int
    num_inf: int
    relative_error: float | None
    """Mean over real tokens of ``||x - r|| / ||r||``; None without a finite token.

    ``r`` is the float32 run with the same attention; of a second float32 run it is the first.
    """
    relative_error_same_routing: float | None = None
    """The same over tokens that every router so far sent to the same experts; None elsewhere."""
    routing_agreement: float | None = None
    """Share of real tokens routed to the reference's experts; None without a router."""

    @property
    def is_finite(self) -> bool:
        """Whether no real token has a NaN or an infinity in it."""
        return not (self.num_nan or self.num_inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Where greedy decoding would first diverge from the reference."""

    probe: str
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitsTrace:
    """The model's final scores against the reference, over real tokens; KL in nats.

    KL, agreement and perplexity cover tokens whose logits are finite, and are None without one.
    """

    abs_max: float | None
    num_nonfinite: int
    kl_divergence_mean: float | None
    kl_divergence_max: float | None
    kl_divergence_mean_same_routing: float | None
    kl_by_probe: dict[str, float | None] = field(default_factory=dict)
    """The mean over each probe's tokens; empty in reports of earlier versions.

    In a mixture of experts, of the tokens that went to the reference's experts.
    """
    kl_divergence_verdict: float | None = None
    """What the run is judged by: a robust figure of ordinary inputs, and of the user's prompts."""
    top1_agreement: float | None
    perplexity: float | None
    reference_perplexity: float | None
    first_greedy_divergence: Divergence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """What a user of the broken run would see.

    A model that generates has the first two, any other one the last.
    """

    greedy: str | None = None
    sampling: str | None = None
    answer: str | None = None


GREEDY, SAMPLED = "greedy", "sampled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What one run generated after one prompt, with its cache."""

    probe: str
    way: str
    """``greedy`` or ``sampled``; all runs draw with the same random numbers."""
    text: str | None
    """None without a tokenizer, or a token."""
    num_tokens: int
    first_difference: int | None
    """Index of the first token that the float32 run with the same attention did not write."""
    broken_step: int | None
    """The forward that broke: 0 is the prompt, k the one after k tokens."""
    overflow: Overflow | None
    """What broke in it."""
    error: str | None
    """What the user would see instead of the rest, such as torch.multinomial's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSums:
    """How large sums inside products could become, in any order of summation.

    Where ``num_beyond_float16`` is 0, no kernel can overflow inside a product.
    """

    num_products: int
    num_beyond_float16: int
    """Products of which some ``|x| @ |w|`` is beyond the range of float16."""
    largest_bound: float
    module: str
    """Where the largest is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTrace:
    """Everything measured of one configuration; ``failure`` says why nothing was."""

    dtype: Dtype
    attn_implementation: str
    """The implementation really in use."""
    requested_attn_implementation: str
    device: str
    arithmetic: Arithmetic = Arithmetic.NATIVE
    accumulation: Accumulation = Accumulation.FLOAT32
    kv_cache_dtype: str | None = None
    """Format of the key-value cache; None: the run's dtype."""
    quantization: str | None = None
    """Format of the weights, and of activations where it has one; None: the run's dtype."""
    partial_sums: PartialSums | None = None
    """Of a run that accumulates in float16."""
    experts_implementation: str | None = None
    stopped_after: str | None = None
    """Module after which the run was NaN everywhere and stopped."""
    failure: str | None = None
    is_finished: bool = True
    """False where the scan ended before the run did; ``failure`` says why."""
    overflows: tuple[Overflow, ...] = ()
    """One row per (module, op, source), in model order."""
    reaches_output: bool = False
    """An unexpected element is in a real token's output."""
    reference_nonfinite: bool = False
    """Float32 runs: a real token's output is not finite."""
    layers: tuple[LayerTrace, ...] = ()
    logits: LogitsTrace | None = None
    format_loss: FormatLoss | None = None
    """Of a run with a format."""
    format_culprits: FormatCulprits | None = None
    """Of a run that loses too much with its format."""
    answers: AnswersTrace | None = None
    """Of a model that generates nothing."""
    positions: tuple[PositionFigures, ...] = ()
    """Of the longest text, by distance from its first token (``coverage.long_text``)."""
    position_roundings: tuple[PositionRounding, ...] = ()
    """Of that text, where positions are computed with in 16 bits, one a kind and source line."""
    symptom: Symptom | None = None
    generations: tuple[Generation, ...] = ()
    """With ``--generate``: greedy and sampled."""
    proof: RunProof | None = None
    """What holds for every prompt; None where bounds were not computed."""

    @property
    def is_proved(self) -> bool:
        """Whether no operation can overflow, whatever the prompt."""
        return self.proof is not None and self.proof.holds_for_every_prompt

    @property
    def configuration(self) -> Configuration:
        """What is really in use."""
        return Configuration.of(self)

    @property
    def configurations(self) -> frozenset[Configuration]:
        """What it may be named by: what is really in use, and what was requested."""
        return frozenset({self.configuration, self.requested})

    @property
    def requested(self) -> Configuration:
        """What was requested: transformers may use another attention implementation."""
        return self.configuration.with_attention(self.requested_attn_implementation)

    @property
    def name(self) -> str:
        """How the run is named in prose.

        >>> RunTrace(dtype=Dtype.FLOAT16, attn_implementation="eager",
        ...          requested_attn_implementation="eager", device="cpu").name
        'float16 + eager'
        """
        return str(self.configuration)


@dataclass(frozen=True, slots=True, kw_only=True)
class Headroom:
    """The largest value one mechanism reached in one layer, and the bits left in each dtype.

    ``headroom_bits`` has a dtype only if the op really runs in it there.
    """

    module: str
    layer: int | None
    section: Section
    op: str
    source: str
    source_file: str | None = None
    mechanism: Mechanism
    attn_implementation: str | None
    """The implementation this row counts for; None when it counts for all."""
    abs_max: float
    headroom_bits: dict[str, float]
    bound_abs_max: dict[str, float] = field(default_factory=dict)
    """By dtype, what no input exceeds in the runs that this row counts for: rounding differs.

    The largest over all operations of the mechanism in this layer. A dtype without one is
    unbounded, or was not examined.
    """
    status: dict[str, ProofStatus] = field(default_factory=dict)
    """By dtype; empty where bounds were not computed."""


LONG_TEXT_TOKENS = 256
ODD_START = "odd_start"
"""A kind: an odd token and another, tried for range. So few tokens say nothing of accuracy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One input and how many real tokens it had."""

    name: str
    kind: str
    """``text``, ``chat``, ``padded``, ``token_ids``, ``odd_start``, ``image`` or ``sound``."""
    num_tokens: int
    is_own: bool = False
    """Given by the user: what is generated after it may be private."""
    is_ordinary: bool = False
    """As users write: the precision of a run is judged by these, and by the user's own."""

    @property
    def is_judged(self) -> bool:
        """Whether the precision of a run is judged by it."""
        return self.is_ordinary or self.is_own

    @property
    def is_judged_alone(self) -> bool:
        """Whether no other text outvotes it: the user's, and one long enough to have pieces."""
        return self.is_own or (self.is_ordinary and self.num_tokens >= LONG_TEXT_TOKENS)

    @property
    def is_for_range(self) -> bool:
        """Whether it says nothing of accuracy, right or wrong."""
        return self.kind == ODD_START


ALL_MEDIA = ("image probes", "sound probes")
"""What ``probes_not_run`` calls all of a kind: no tower was run."""
