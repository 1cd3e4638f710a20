"""Measured models as people deploy them, written by hand; their sizes are the real ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.sizes import AttentionFacts, CacheSize, Widths
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Measurements, ModelFacts
    from precheck.records.traces import Headroom, RunTrace

BILLION = 1_000_000_000


def model(
    base: Measurements,
    *,
    size: float,
    model_type: str,
    declared: str = "bfloat16",
    attention: AttentionFacts | None = None,
    default: str = "sdpa",
    layers: int = 32,
    kv: int = 1024,
    hidden: int = 4096,
) -> ModelFacts:
    """``size`` in billions of parameters, ``kv`` elements of keys per layer and token."""
    return replace(
        base.model,
        id=f"some/{model_type}",
        model_type=model_type,
        declared_dtype=declared,
        tensor_dtypes={declared: int(size * BILLION)},
        num_parameters=int(size * BILLION),
        default_attn_implementation=default,
        attention=attention or replace(hand_made.ATTENTION, head_dim=128, value_head_dim=128),
        cache=CacheSize(elements_per_token=2 * layers * kv),
        widths=Widths(hidden=hidden, widest=4 * hidden, vocabulary=152_064),
    )


def broken_by(mechanism: Mechanism, run: RunTrace, *, size: float = 200_000.0) -> RunTrace:
    overflow = hand_made.scores_overflow(
        mechanism=mechanism,
        module="model.layers.3.mlp" if mechanism is Mechanism.GATED_PRODUCT else "model.layers.3",
        reference_abs_max=size,
    )
    return replace(run, reaches_output=True, overflows=(overflow,))


def row(mechanism: Mechanism, *, layer: int, abs_max: float, module: str = "") -> Headroom:
    return hand_made.headroom_row(
        mechanism, layer=layer, abs_max=abs_max, op="aten.add", line=289, module=module
    )


def healthy(size: float = 7.6) -> Measurements:
    base = hand_made.measurements()
    return replace(base, model=model(base, size=size, model_type="llama"))


def qwen2(size: float = 7.6) -> Measurements:
    """Raw scores of 231,000: eager breaks in float16 and loses accuracy in bfloat16."""
    base = hand_made.qwen2_eager()
    return replace(base, model=model(base, size=size, model_type="qwen2", layers=28, kv=512))


def gemma3(size: float = 4.3) -> Measurements:
    """The residual stream leaves float16 from layer 1 on."""
    base = hand_made.measurements()
    runs = tuple(
        broken_by(Mechanism.RESIDUAL, run) if run.dtype is Dtype.FLOAT16 else run
        for run in base.runs
    )
    residual = tuple(row(Mechanism.RESIDUAL, layer=layer, abs_max=240_000.0) for layer in (1, 2, 3))
    return replace(
        base,
        model=model(base, size=size, model_type="gemma3_text", layers=34, kv=1024, hidden=2560),
        runs=runs,
        headroom=residual,
    )


def llama_product() -> Measurements:
    """One gated product of 66,975 in layer 3, everything else is small."""
    base = hand_made.measurements()
    runs = tuple(
        broken_by(Mechanism.GATED_PRODUCT, run, size=66_975.0)
        if run.dtype is Dtype.FLOAT16
        else run
        for run in base.runs
    )
    rows = (
        row(Mechanism.GATED_PRODUCT, layer=3, abs_max=66_975.0, module=".mlp"),
        row(Mechanism.RESIDUAL, layer=3, abs_max=2_500.0),
    )
    return replace(base, model=model(base, size=6.7, model_type="llama"), runs=runs, headroom=rows)


def tight(abs_max: float = 35_328.0, size: float = 32.8) -> Measurements:
    """Qwen3-32B: less than one bit left in the residual stream."""
    base = hand_made.measurements()
    return replace(
        base,
        model=model(base, size=size, model_type="qwen3", layers=64, kv=1024, hidden=5120),
        headroom=(row(Mechanism.RESIDUAL, layer=3, abs_max=abs_max),),
    )


def eager_only(base: Measurements) -> tuple[RunTrace, ...]:
    return tuple(run for run in base.runs if run.attn_implementation == "eager")


def gpt_oss() -> Measurements:
    """MXFP4 experts, sinks, no sdpa, and a residual stream of 145,408 in the last layer."""
    base = hand_made.measurements()
    runs = tuple(
        broken_by(Mechanism.RESIDUAL, run, size=145_408.0) if run.dtype is Dtype.FLOAT16 else run
        for run in eager_only(base)
    )
    attention = AttentionFacts(
        supported=("eager", *hand_made.FLASH, "flex_attention"),
        flash_kernels=("kernels-community/vllm-flash-attn3", "flash_attention_4"),
        num_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        value_head_dim=64,
        sliding_window=128,
        has_sinks=True,
    )
    described = model(
        base,
        size=0,
        model_type="gpt_oss",
        attention=attention,
        default="eager",
        layers=24,
        kv=512,
        hidden=2880,
    )
    return replace(
        base,
        model=replace(
            described,
            tensor_dtypes={"uint8": int(10.2 * BILLION), "bfloat16": int(1.8 * BILLION)},
            num_parameters=int(20.9 * BILLION),
            quantization={"quant_method": "mxfp4", "decoded_by": "transformers"},
        ),
        runs=runs,
        headroom=(row(Mechanism.RESIDUAL, layer=5, abs_max=145_408.0),),
    )


def wide_heads() -> Measurements:
    """Gemma 4: heads of 512 elements."""
    base = healthy(8.0)
    attention = replace(hand_made.ATTENTION, head_dim=512, value_head_dim=512, sliding_window=512)
    return replace(base, model=replace(base.model, model_type="gemma4_text", attention=attention))


def softcap(size: float = 9.2) -> Measurements:
    """Gemma 2: scores are capped, so there is no sdpa; 9b's residual stream is small."""
    base = hand_made.measurements()
    attention = AttentionFacts(
        supported=("eager", *hand_made.FLASH, "flex_attention"),
        num_heads=16,
        num_key_value_heads=8,
        head_dim=256,
        value_head_dim=256,
        softcap=50.0,
        sliding_window=4096,
    )
    return replace(
        base,
        model=model(base, size=size, model_type="gemma2", attention=attention, default="eager"),
        runs=eager_only(base),
        headroom=(row(Mechanism.RESIDUAL, layer=3, abs_max=1_664.0),),
    )


def encoder() -> Measurements:
    """BERT: stored in float32, sees both ways, keeps no cache."""
    base = hand_made.measurements()
    attention = replace(hand_made.ATTENTION, head_dim=64, value_head_dim=64, is_causal=False)
    described = model(
        base, size=0.11, model_type="bert", declared="float32", attention=attention, hidden=768
    )
    return replace(base, model=replace(described, cache=None))


def gptq() -> Measurements:
    """Qwen2.5-14B in 4 bits: 10 GB as stored, 29 GB in float16."""
    base = healthy(14.7)
    return replace(
        base,
        model=replace(
            base.model,
            model_type="qwen2",
            declared_dtype="float16",
            tensor_dtypes={"int32": int(1.75 * BILLION), "float16": int(1.6 * BILLION)},
            quantization={"quant_method": "gptq", "bits": 4},
        ),
    )


def static() -> Measurements:
    """Gemma 3 with --static: nothing was run."""
    base = gemma3()
    return replace(base, runs=(), headroom=(), probes=(), is_static=True)
