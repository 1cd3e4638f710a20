"""Every number a judgement depends on, written once: its unit, its reason and its source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """A value that separates two judgements."""

    value: float
    unit: str
    reason: str
    source: str


DEGRADED_KL_DIVERGENCE = Threshold(
    value=0.01,
    unit="nat, of ordinary inputs: the worst kind's median of the means of its texts",
    reason=(
        "Rounding alone stays a decade below it on ordinary text: bfloat16 + sdpa has 1.2e-3 nat "
        "on SmolLM2-135M, 6.6e-4 on Gemma-3-270m, 4.4e-4 on Qwen2.5-Coder-0.5B and 8.4e-4 on "
        "whisper-base, where the mean over odd texts too is 3e-3 to 2.5e-2. Planted and reported "
        "faults are above: bfloat16 + eager on Qwen2-7B changes the perplexity by 12%, 0.11 nat."
    ),
    source="https://github.com/huggingface/transformers/pull/33317 and make real",
)
DEGRADED_FORMAT_KL_DIVERGENCE = Threshold(
    value=0.2,
    unit="nat, as for dtypes; of a run whose cache or weights are stored in a format",
    reason=(
        "What people deploy is below it: 8-bit formats 1e-4 to 0.09, 4-bit weights of "
        "Llama-3.2-1B 0.158 and of the 3B 0.085, MXFP4 of Qwen3.8-27B 0.057 (0.13 with 4-bit "
        "activations). What they report is above: an fp8 cache of Qwen2-7B, ln(34.8 / 22.6) = 0.43 "
        "from perplexities, a 4-bit cache of Qwen2.5-7B 9.4."
    ),
    source="docs/formats.md",
)
LOST_IN_ONE_PART = Threshold(
    value=0.1,
    unit="nat, where one part of the model loses at least half of it by itself",
    reason=(
        "Half of what is called degraded. A loss that all layers share is the price of a format; "
        "one that a single part has can be avoided, and grows with what makes that part large."
    ),
    source="tests/measure/formats/test_plants.py",
)
DEGRADED_RELATIVE_ERROR = Threshold(
    value=0.1,
    unit="mean over real tokens of ||x - r|| / ||r|| after the last layer",
    reason=(
        "A bfloat16 step is 2^-8 of a value at most; the rounding of some thirty layers adds up "
        "to a few percent. A tenth means that something else was lost."
    ),
    source="https://arxiv.org/abs/1905.12322",
)
DEGRADED_SCORES = Threshold(
    value=0.2,
    unit="root mean square error of a score, of its standard deviation across inputs",
    reason=(
        "Two inputs a spread apart keep their order; those a fifth of it apart begin to change "
        "places. A reranker whose scores lie within 0.1 around 9 has 6% in float16 and 51% in "
        "bfloat16, which makes 3 values of 8."
    ),
    source="tests/measure/lockstep/figures/test_answers.py",
)
COARSE_STEP = Threshold(
    value=0.25,
    unit="between neighbouring values, where the largest attention scores are",
    reason=(
        "Rounding moves a score by half a step, and its weight by a factor of exp of that: 13%. "
        "BLOOM's biases reach 2,048 times a head's slope, where bfloat16 has steps of 4 and more."
    ),
    source="https://arxiv.org/abs/2108.12409",
)
COARSE_ANGLE = Threshold(
    value=2.0**-4,
    unit="radian, between neighbouring values, where the largest rotary angles are",
    reason=(
        "Rounding turns a query by half a step, and its product with a key by as much relative to "
        "its size. bfloat16 passes it at 8 radians, float16 at 64, which the fastest frequency "
        "reaches at the token of that number."
    ),
    source="https://github.com/huggingface/transformers/pull/29285",
)
COARSE_NUMBER = Threshold(
    value=2.0,
    unit="tokens, between neighbouring values, where the largest position is",
    reason="Two tokens get one number: beyond 256 in bfloat16, beyond 2,048 in float16.",
    source="https://github.com/huggingface/transformers/pull/29285",
)
FAR_FROM_NEAR = Threshold(
    value=4.0,
    unit="KL divergence of the worst distance, of that of the first 64 tokens",
    reason=(
        "A choice: healthy tiny models over 4,096 tokens stay below it, and biases of BLOOM in "
        "bfloat16 change it 1,500 times over 2,048 tokens."
    ),
    source="tests/judge/test_positions.py",
)
GROWTH = Threshold(
    value=0.25,
    unit="bit for each doubling of the distance, in three doublings one after the other",
    reason=(
        "The largest of twice as many values is a little larger by chance, by a few hundredths "
        "of a bit; what adds up over tokens grows by half a bit (a random walk) or by one."
    ),
    source="tests/judge/test_positions.py",
)
FP8_SCORE_ROUNDING = Threshold(
    value=15.0,
    unit="nat that scores move at most because of key biases: root of the sum of layers' squares",
    reason=(
        "In e4m3 SmolLM2-135M loses 0.0075 nat; with biases planted in 50 ways (norms of 3 to "
        "1,000, in 2 to 32 channels of slow or any frequencies, in 1, 4 or 30 layers) another "
        "0.1e-5 to 6e-5 nat times the square of this figure, 2e-5 in the median: at 15 the sum "
        "passes the 0.01 nat that are called degraded. Random models of Qwen2, StarCoder2 and "
        "others lose ten times their own 0.003 at 4 already. A norm of 22 in every layer, the "
        "median of Qwen2.5-7B, gives 10, and its norms in the first and last layer too give 80."
    ),
    source="https://github.com/ggml-org/llama.cpp/issues/21385 and make real",
)
USUAL_QUERY = Threshold(
    value=30.0,
    unit="largest magnitude of a query, where none was measured",
    reason=(
        "With it the key biases of Qwen2.5-7B, whose norms are known, give what FP8_SCORE_ROUNDING "
        "says of them: 10 for 22 in every layer, 80 with 605 in the first and 921 in the last."
    ),
    source="https://github.com/ggml-org/llama.cpp/issues/21385",
)
LOW_HEADROOM = Threshold(
    value=1.0,
    unit="bit",
    reason=(
        "What a prompt changes must fit into what is left. BOS alone moves the maximum of "
        "gemma-3-12b from 471,040 to 778,240, which is 0.7 bits."
    ),
    source="https://arxiv.org/abs/2503.22329",
)
NEAR_OVERFLOW = Threshold(
    value=3.0,
    unit="bits of headroom found, where no bound proves that it stays positive",
    reason=(
        "A choice: BOS alone adds 0.7 bits to gemma-3-12b's maximum, and a searched prompt more; "
        "farther away than this a bound is merely loose."
    ),
    source="https://arxiv.org/abs/2503.22329",
)
PREFER_FLOAT16 = Threshold(
    value=2.0,
    unit="bit",
    reason=(
        "Where bfloat16 is native and safe too, float16 is worth its finer steps only if its "
        "range is not a concern at all: twice what is called low headroom."
    ),
    source="https://arxiv.org/abs/2503.22329",
)
SAME_KL_DIVERGENCE = Threshold(
    value=1e-4,
    unit="nat, mean over real tokens",
    reason="Two runs both below it are equally close for any use of the model; neither is better.",
    source="https://github.com/huggingface/transformers/pull/33317",
)
SAME_RELATIVE_ERROR = Threshold(
    value=2.0**-8,
    unit="mean over real tokens of ||x - r|| / ||r|| after the last layer",
    reason=(
        "What storing one value in bfloat16 may cost: a run that is no further from float32 after "
        "all its layers has lost nothing that a 16-bit output could show."
    ),
    source="https://arxiv.org/abs/1905.12322",
)
EXACT_KL_DIVERGENCE = Threshold(
    value=1e-8,
    unit="nat, mean over real tokens, float32 against float32",
    reason=(
        "Powers of two change no digit of float32; where weights stored in float16 became "
        "subnormal, 2e-13 was measured. A wrong factor anywhere is decades above it."
    ),
    source="docs/fix.md",
)
REFERENCE_DISAGREEMENT = Threshold(
    value=1e-3,
    unit="mean over real tokens of ||x - r|| / ||r|| after the last layer, r the first float32 run",
    reason=(
        "Attention implementations agree to about 1e-6 in float32. A thousand times that is "
        "another computation (a mask, a softcap, a scale), not another order of additions."
    ),
    source="https://github.com/huggingface/transformers/issues/35151",
)
FLUSHED_SHARE = Threshold(
    value=1e-3,
    unit="share of the stored weights that become zero in float16",
    reason=(
        "Weights of standard deviation 0.02 lose about one in a million below 2^-25; a "
        "thousandth means that some tensors live below float16's range."
    ),
    source="https://pytorch.org/docs/stable/type_info.html#torch.torch.finfo",
)
SUBNORMAL_SHARE = Threshold(
    value=0.05,
    unit="share of the stored weights that become subnormal in float16",
    reason=(
        "Weights of standard deviation 0.02 have 0.2% below 2^-14, those of 0.002 have 2.4%. "
        "Subnormal weights keep fewer digits, and some kernels take them for zero."
    ),
    source="https://pytorch.org/docs/stable/type_info.html#torch.torch.finfo",
)
USABLE_MEMORY = Threshold(
    value=0.92,
    unit="share of a device's memory",
    reason="What vLLM takes by default; the rest is the driver's, the libraries' and the screen's.",
    source="https://github.com/vllm-project/vllm/blob/v0.33.0/vllm/config/cache.py",
)
PREFILL_TOKENS = Threshold(
    value=2048,
    unit="tokens",
    reason="A long prompt, and the batch of tokens that engines cut longer ones into.",
    source="https://docs.vllm.ai/en/latest/configuration/optimization.html#chunked-prefill",
)
DIFFERENT_SIZE = Threshold(
    value=0.05,
    unit="of the larger of two maxima of a layer, 16-bit runs",
    reason=(
        "Forty times what arithmetic alone was measured to change: 0.12% at most between native "
        "and float32-rounded products, 0 between thread counts, on five built-in models."
    ),
    source="tests/judge/test_difference.py repeats it on one of them",
)
DIFFERENT_SIZE_FLOAT32 = Threshold(
    value=1e-3,
    unit="of the larger of two maxima of a layer, float32 runs",
    reason=(
        "Summing in another order changes float32 by about 1e-6 a layer; what differs by a "
        "thousand times that was computed differently."
    ),
    source="tests/judge/test_difference.py",
)
DIFFERENT_DIVERGENCE = Threshold(
    value=1e-3,
    unit="nat, mean KL",
    reason=(
        "A tenth of what is called degraded. Arithmetic alone was measured to change a KL by a "
        "quarter; twice, and above this, is more."
    ),
    source="tests/judge/test_difference.py",
)
SUBNORMAL_SCALES = Threshold(
    value=0.01,
    unit="share of a weight's NVFP4 block scales, of blocks that are not zero, below 2^-6",
    reason=(
        "The largest block scale is 448 where the factor for all was chosen for it, so that one "
        "below 2^-6 belongs to a block 28,672 times smaller, which matters to nothing. A "
        "hundredth of them means that the factor for all was not chosen: it is 1."
    ),
    source="https://github.com/vllm-project/vllm/pull/34577",
)
NARROW_RANGE = Threshold(
    value=1e-3,
    unit="of the median of what static scales allow the same linear of the layer's experts",
    reason=(
        "An ordinary token is cut to a thousandth of itself there. Experts that calibration "
        "reached differ by their tokens; those that it did not reach have almost nothing."
    ),
    source="https://github.com/vllm-project/vllm/pull/42601",
)
CLIPPED_RANGE = Threshold(
    value=1.5,
    unit="largest measured value, of the largest that a static scale allows",
    reason=(
        "Another text moves a maximum by tens of percent, and what is cut then is little. Values "
        "2.8 times beyond it (1,272 of 448) cost 4.2 points of MATH-500."
    ),
    source="https://github.com/vllm-project/vllm/issues/54705",
)
UNUSED_RANGE = Threshold(
    value=2.0**-8,
    unit="largest measured value, of the largest that a static scale allows",
    reason=(
        "float8_e4m3 keeps its three digits down to 2^-15 of its maximum. With eight bits of it "
        "unused, what is a hundred times smaller than the largest value loses digits."
    ),
    source="https://arxiv.org/abs/2209.05433",
)
