"""Why an operation exceeds the range of its dtype: a row for each mechanism.

A new mechanism is a value of ``Mechanism``, its row here, and its section in
``facts/findings.md``; ``measure/blame/mechanisms.py`` is where operations are classified.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Mechanism(StrEnum):
    """Why an operation exceeds the range of its dtype."""

    ATTENTION_SCORES = "attention_scores"
    GATED_PRODUCT = "gated_product"
    MLP_OUTPUT = "mlp_output"
    RESIDUAL = "residual"
    PROJECTION = "projection"
    NORM = "norm"
    EMBEDDING = "embedding"
    LOGITS = "logits"
    MASK = "mask"
    WEIGHTS = "weights"
    ACCUMULATION = "accumulation"
    STORING = "storing"
    OTHER = "other"

    @property
    def phrase(self) -> str:
        """What overflowed, in words.

        >>> Mechanism.RESIDUAL.phrase
        'the residual stream'
        """
        return MECHANISMS[self].phrase


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismFacts:
    """What overflowed, its finding, why it happens, what helps and what does not."""

    phrase: str
    """What overflowed, in words that follow ``overflow of``."""
    code: str
    """Of the finding, where it reaches the output."""
    title: str
    cause: str
    in_vain: str
    hint: str = ""
    """What else helps, besides a dtype or an attention implementation (``findings.cures``)."""
    is_of_the_dtype: bool = True
    """Another dtype helps."""
    is_rescalable: bool = False
    """Weights times powers of two may bring it into range, which is what ``precheck fix`` tries."""
    is_in_scores: bool = False
    """Only attention that materialises its scores has it."""
    is_product: bool = False
    """In 16 bits even where activations between products are kept in float32."""
    enters_residual: bool = False
    """What a module adds to the residual stream: in float32 inside it, in float16 after it."""


MECHANISMS = {
    Mechanism.ATTENTION_SCORES: MechanismFacts(
        phrase="the raw attention scores (QK^T before scaling)",
        code="PC301",
        title="raw attention scores overflow in eager attention",
        cause="Eager attention materialises QK^T in 16 bits and scales it afterwards.",
        in_vain="Other tools blame o_proj; there is nothing wrong with it.",
        is_in_scores=True,
    ),
    Mechanism.MASK: MechanismFacts(
        phrase="the attention mask",
        code="PC302",
        title="mask arithmetic produces NaN",
        cause=(
            "The mask's most negative number plus a negative score is -inf; softmax turns a row "
            "of nothing but -inf into NaN."
        ),
        hint="Keeping masks in float32 helps too.",
        in_vain=(
            "Replacing inf with 0 after the mask makes future tokens visible (transformers#35151)."
        ),
        is_in_scores=True,
    ),
    Mechanism.GATED_PRODUCT: MechanismFacts(
        phrase="the gated product (act(gate) * up)",
        code="PC101",
        title="the gated product overflows",
        cause="Two factors that fit are multiplied, and the product does not.",
        in_vain=(
            "Other tools blame down_proj; its input is already infinite. No attention "
            "implementation helps."
        ),
        is_product=True,
        is_rescalable=True,
    ),
    Mechanism.MLP_OUTPUT: MechanismFacts(
        phrase="the output of the feed-forward block",
        code="PC102",
        title="the feed-forward output overflows",
        cause="The last linear of the block sums to more than the dtype's maximum.",
        in_vain="Other tools blame the next norm. No attention implementation helps.",
        is_product=True,
        enters_residual=True,
        is_rescalable=True,
    ),
    Mechanism.RESIDUAL: MechanismFacts(
        phrase="the residual stream",
        code="PC103",
        title="the residual stream overflows",
        cause="Every layer adds to the stream, and the sum exceeds the range.",
        in_vain="Other tools blame the next norm. No attention implementation helps.",
        enters_residual=True,
        is_rescalable=True,
    ),
    Mechanism.PROJECTION: MechanismFacts(
        phrase="a linear projection",
        code="PC104",
        title="a linear projection overflows",
        cause="The product with the weights exceeds the dtype's maximum.",
        in_vain="",
        is_product=True,
    ),
    Mechanism.NORM: MechanismFacts(
        phrase="a normalisation that runs in 16 bits",
        code="PC105",
        title="a normalisation overflows",
        cause="It computes in 16 bits, or its result is cast to 16 bits too early.",
        hint="A normalisation that computes in float32 and casts last helps too.",
        in_vain="A larger epsilon does not help: the square overflows, not the division.",
    ),
    Mechanism.EMBEDDING: MechanismFacts(
        phrase="the scaled embedding",
        code="PC106",
        title="the scaled embedding overflows",
        cause="The embedding times its scale exceeds the dtype's maximum.",
        in_vain="",
        enters_residual=True,
    ),
    Mechanism.LOGITS: MechanismFacts(
        phrase="the logits",
        code="PC107",
        title="the logits overflow",
        cause="The final projection exceeds the dtype's maximum.",
        hint="Keeping the head in float32 helps too.",
        in_vain="A softcap after the projection comes too late.",
        is_product=True,
    ),
    Mechanism.WEIGHTS: MechanismFacts(
        phrase="a stored weight",
        code="PC108",
        title="a stored weight exceeds the dtype",
        cause="The weight becomes infinite as soon as it is cast.",
        hint="Keeping that module in float32 helps too.",
        in_vain="",
    ),
    Mechanism.ACCUMULATION: MechanismFacts(
        phrase="the partial sums inside a kernel",
        code="PC109",
        title="a kernel's partial sums overflow",
        cause="A kernel that accumulates in float16 overflows midway; inputs and result fit.",
        hint=(
            "Use a kernel that accumulates in float32 (Marlin or Triton in gptqmodel and vLLM, not "
            "exllama v2 of auto_gptq; not torch.backends.cuda.matmul.allow_fp16_accumulation)."
        ),
        is_of_the_dtype=False,
        in_vain="Hooks on modules see a normal input and an infinite output; the weights are fine.",
    ),
    Mechanism.STORING: MechanismFacts(
        phrase="a number stored in a format",
        code="PC604",
        title="a number does not fit into a format",
        cause="This cast does not clip: what is beyond the format's largest number becomes NaN.",
        hint="A format with a scale, or a kernel that clips, keeps it finite.",
        is_of_the_dtype=False,
        in_vain="Another dtype: the format has the range that it has.",
    ),
    Mechanism.OTHER: MechanismFacts(
        phrase="another operation",
        code="PC110",
        title="another operation overflows",
        cause="Its result exceeds the dtype's maximum.",
        in_vain="",
    ),
}
"""In the order in which findings about them are reported."""
