"""What is known of each mechanism: its finding code, its cure, and what is tried in vain."""

from __future__ import annotations

from dataclasses import dataclass

from precheck.records.traces import Mechanism


@dataclass(frozen=True, slots=True, kw_only=True)
class Cure:
    """One row of the mechanism table: what to do and what not to expect."""

    code: str
    title: str
    cause: str
    advice: str
    in_vain: str


NO_SAMPLING_CURE = (
    "Temperature, a repetition penalty, an epsilon or clipping the logits do not help: "
    "the logits are NaN before sampling. An instruct version has the same range."
)
NOT_EQUIVALENT = (
    "Clamping and remove_invalid_values hide the NaN and change the answer "
    "(Gemma-3-12b, clamped: gsm8k 0.874 -> 0.647)."
)

CURES = {
    Mechanism.ATTENTION_SCORES: Cure(
        code="PC301",
        title="raw attention scores overflow in eager attention",
        cause="Eager attention writes QK^T in 16 bits and scales it afterwards.",
        advice=(
            'Load with attn_implementation="sdpa" or "flash_attention_2", which scale inside the '
            "kernel; do not pass output_attentions=True, it forces eager."
        ),
        in_vain="Other tools blame o_proj; nothing is wrong with it.",
    ),
    Mechanism.MASK: Cure(
        code="PC302",
        title="mask arithmetic makes NaN",
        cause=(
            "The mask's most negative number plus a negative score is -inf; a row that holds "
            "nothing else comes out of the softmax as NaN."
        ),
        advice=(
            'Load with attn_implementation="sdpa", or keep the masks in float32; bfloat16 helps '
            "too."
        ),
        in_vain=(
            "Replacing inf by 0 after the mask makes future tokens visible (transformers#35151)."
        ),
    ),
    Mechanism.GATED_PRODUCT: Cure(
        code="PC101",
        title="the gated product overflows",
        cause="Two factors that fit are multiplied into one that does not.",
        advice="Use bfloat16 or float32.",
        in_vain=(
            "Other tools blame down_proj; its input is already infinite. No attention "
            "implementation helps."
        ),
    ),
    Mechanism.MLP_OUTPUT: Cure(
        code="PC102",
        title="the feed-forward output overflows",
        cause="The last linear of the block sums to more than the dtype holds.",
        advice="Use bfloat16, or keep that module in float32.",
        in_vain="Other tools blame the next norm. No attention implementation helps.",
    ),
    Mechanism.RESIDUAL: Cure(
        code="PC103",
        title="the residual stream overflows",
        cause="Every layer adds to the stream, and the sum leaves the range.",
        advice="Use bfloat16; where it is not native, precheck fix may rescale it for float16.",
        in_vain="Other tools blame the next norm. No attention implementation helps.",
    ),
    Mechanism.PROJECTION: Cure(
        code="PC104",
        title="a linear projection overflows",
        cause="The product with the weights is larger than the dtype holds.",
        advice="Use bfloat16, or keep that module in float32.",
        in_vain="",
    ),
    Mechanism.NORM: Cure(
        code="PC105",
        title="a normalisation overflows",
        cause="It computes in 16 bits, or its result is cast to 16 bits too early.",
        advice="Use bfloat16, or a normalisation that computes in float32 and casts last.",
        in_vain="A larger epsilon does not help: the square overflows, not the division.",
    ),
    Mechanism.EMBEDDING: Cure(
        code="PC106",
        title="the scaled embedding overflows",
        cause="The embedding times its scale is larger than the dtype holds.",
        advice="Use bfloat16 or float32.",
        in_vain="",
    ),
    Mechanism.LOGITS: Cure(
        code="PC107",
        title="the logits overflow",
        cause="The final projection is larger than the dtype holds.",
        advice="Use bfloat16, or keep the head in float32.",
        in_vain="A softcap after the projection comes too late.",
    ),
    Mechanism.WEIGHTS: Cure(
        code="PC108",
        title="a stored weight is outside the dtype",
        cause="The weight is infinite as soon as it is cast.",
        advice="Use bfloat16 or float32, or keep that module in float32.",
        in_vain="",
    ),
    Mechanism.ACCUMULATION: Cure(
        code="PC109",
        title="a kernel's partial sums overflow",
        cause="A kernel that adds up in float16 is infinite half-way; inputs and result fit.",
        advice=(
            "Use a kernel that adds up in float32 (Marlin or Triton in gptqmodel and vLLM, not "
            "exllama v2 of auto_gptq; not torch.backends.cuda.matmul.allow_fp16_accumulation)."
        ),
        in_vain="Hooks on modules see a sound input and an infinite output; the weights are fine.",
    ),
    Mechanism.OTHER: Cure(
        code="PC110",
        title="another operation overflows",
        cause="Its result is larger than the dtype holds.",
        advice="Use bfloat16 or float32.",
        in_vain="",
    ),
}
