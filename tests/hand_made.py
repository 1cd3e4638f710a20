"""Measurements written by hand: the stories that judge and render are tested with."""

from __future__ import annotations

from dataclasses import replace

from precheck.records.format_loss import FormatLoss
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.coverage import Coverage
from precheck.records.precision import Dtype, headroom_bits
from precheck.records.report import Device, Environment, Measurements, ModelFacts
from precheck.records.sizes import AttentionFacts, CacheSize, Widths
from precheck.records.stored import CheckpointAudit, TensorFault
from precheck.records.traces import (
    Divergence,
    Headroom,
    LayerTrace,
    LogitsTrace,
    Overflow,
    Probe,
    RunTrace,
    Section,
    Symptom,
)

NUM_LAYERS = 6
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
ATTENTION = AttentionFacts(
    supported=("eager", "sdpa", *FLASH, "flex_attention"),
    num_heads=8,
    num_key_value_heads=2,
    head_dim=32,
    value_head_dim=32,
)
RESIDUAL = (1.21, 2.4, 4.75, 9.88, 12.3, 17.6)
PROBES = (
    Probe(name="plain", kind="text", num_tokens=64),
    Probe(name="chat", kind="chat", num_tokens=64),
    Probe(name="上海", kind="text", num_tokens=64),
    Probe(name="padded", kind="padded", num_tokens=117),
    Probe(name="long", kind="text", num_tokens=512),
)
ALL_PROBES = tuple(probe.name for probe in PROBES)
CODE = "attn_weights = torch.matmul(query, key_states.transpose(2, 3)) * scaling"


def layers(
    *,
    errors: tuple[float | None, ...] = (0.0,) * NUM_LAYERS,
    nan_from: int = NUM_LAYERS,
) -> tuple[LayerTrace, ...]:
    return tuple(
        LayerTrace(
            index=index,
            section=Section.DECODER,
            module=f"model.layers.{index}",
            abs_max=RESIDUAL[index] if index < nan_from else None,
            num_nan=0 if index < nan_from else 24_640,
            num_inf=0,
            relative_error=error if index < nan_from else None,
        )
        for index, error in enumerate(errors)
    )


def logits(
    *,
    kl: float | None = 0.0,
    kl_max: float | None = 0.0,
    top1: float | None = 1.0,
    perplexity: float | None = 7.1378,
    num_nonfinite: int = 0,
    parts_at: int | None = None,
    kl_by_probe: dict[str, float | None] | None = None,
    verdict: float | None = None,
) -> LogitsTrace:
    return LogitsTrace(
        abs_max=18.4 if num_nonfinite == 0 else None,
        num_nonfinite=num_nonfinite,
        kl_divergence_mean=kl,
        kl_divergence_max=kl_max,
        kl_divergence_mean_same_routing=None,
        kl_by_probe=kl_by_probe or {},
        kl_divergence_verdict=verdict,
        top1_agreement=top1,
        perplexity=perplexity,
        reference_perplexity=7.1378,
        first_greedy_divergence=(
            None if parts_at is None else Divergence(probe="plain", position=parts_at)
        ),
    )


def run(dtype: Dtype, attn_implementation: str, **changes: object) -> RunTrace:
    healthy = RunTrace(
        dtype=dtype,
        attn_implementation=attn_implementation,
        requested_attn_implementation=attn_implementation,
        device="cpu",
        layers=layers(),
        logits=logits(),
    )
    return replace(healthy, **changes)  # type: ignore[arg-type]


def scores_overflow(**changes: object) -> Overflow:
    overflow = Overflow(
        module="model.layers.3.self_attn",
        layer=3,
        section=Section.DECODER,
        op="aten.bmm",
        source="modeling_qwen2.py:155",
        code=CODE,
        mechanism=Mechanism.ATTENTION_SCORES,
        reference_abs_max=231_000.0,
        limit=65_504.0,
        num_elements=1_284_096,
        probes=ALL_PROBES,
        absorbed=False,
    )
    return replace(overflow, **changes)  # type: ignore[arg-type]


def headroom_row(
    mechanism: Mechanism,
    *,
    layer: int,
    abs_max: float,
    op: str,
    line: int,
    module: str,
    attn_implementation: str | None = None,
) -> Headroom:
    return Headroom(
        module=f"model.layers.{layer}{module}",
        layer=layer,
        section=Section.DECODER,
        op=op,
        source=f"modeling_qwen2.py:{line}",
        mechanism=mechanism,
        attn_implementation=attn_implementation,
        abs_max=abs_max,
        headroom_bits={
            dtype.value: left
            for dtype in (Dtype.FLOAT16, Dtype.BFLOAT16)
            if (left := headroom_bits(abs_max, dtype)) is not None
        },
    )


def headroom_rows(*, scores: float) -> tuple[Headroom, ...]:
    return tuple(
        row
        for layer in range(NUM_LAYERS)
        for row in (
            headroom_row(
                Mechanism.ATTENTION_SCORES,
                layer=layer,
                abs_max=scores if layer == 3 else 9.4,
                op="aten.bmm",
                line=155,
                module=".self_attn",
                attn_implementation="eager",
            ),
            headroom_row(
                Mechanism.GATED_PRODUCT,
                layer=layer,
                abs_max=3.1 * (layer + 1),
                op="aten.mul",
                line=46,
                module=".mlp",
            ),
            headroom_row(
                Mechanism.PROJECTION,
                layer=layer,
                abs_max=480.0 if layer == 3 else 6.2,
                op="aten.addmm",
                line=201,
                module=".self_attn.k_proj",
            ),
            headroom_row(
                Mechanism.RESIDUAL,
                layer=layer,
                abs_max=RESIDUAL[layer],
                op="aten.add",
                line=289,
                module="",
            ),
        )
    )


def measurements(**changes: object) -> Measurements:
    """A healthy model on a CPU: three dtypes with sdpa and eager."""
    scan = Measurements(
        model=ModelFacts(
            id="demo:healthy",
            revision=None,
            architecture="Qwen2ForCausalLM",
            model_type="qwen2",
            decoder_layers="model.layers",
            num_decoder_layers=NUM_LAYERS,
            num_parameters=1_214_080,
            declared_dtype="bfloat16",
            tensor_dtypes={"bfloat16": 1_214_080},
            default_attn_implementation="sdpa",
            max_context=2048,
            attention=ATTENTION,
            cache=CacheSize(elements_per_token=768),
            widths=Widths(hidden=256, widest=512, vocabulary=320),
        ),
        checkpoint=CheckpointAudit(num_elements=1_214_080, size_bytes=2_428_160),
        environment=Environment(
            python="3.11.9",
            platform="Linux-6.8-x86_64",
            cpu="x86_64",
            num_threads=8,
            memory_bytes=32 * 2**30,
            libraries={"torch": "2.13.0", "transformers": "5.23.0"},
            devices=(Device(name="cpu", kind="cpu", memory_bytes=32 * 2**30),),
        ),
        probes=PROBES,
        coverage=Coverage(
            num_ops_watched=1_832,
            unwatched_ops={"aten.t": 252, "aten.view": 310},
            longest_probe_tokens=512,
            num_tokens=821,
            instrumentation="forward hooks, dispatch mode",
        ),
        runs=healthy_runs(),
        headroom=headroom_rows(scores=61.0),
        seed=0,
    )
    return replace(scan, **changes)  # type: ignore[arg-type]


_ROUNDING = (0.0021, 0.0032, 0.0041, 0.0048, 0.0053, 0.0061)
FLOAT16_ERRORS = tuple(error / 8 for error in _ROUNDING)
BFLOAT16_ERRORS = _ROUNDING


def healthy_runs() -> tuple[RunTrace, ...]:
    return tuple(
        run(dtype, attn_implementation, layers=layers(errors=errors), logits=finals)
        for dtype, errors, finals in (
            (Dtype.FLOAT32, (0.0,) * NUM_LAYERS, logits()),
            (Dtype.FLOAT16, FLOAT16_ERRORS, logits(kl=1.1e-5, kl_max=9.2e-4, top1=0.9988)),
            (Dtype.BFLOAT16, BFLOAT16_ERRORS, logits(kl=9.7e-4, kl_max=0.012, top1=0.983)),
        )
        for attn_implementation in ("sdpa", "eager")
    )


def qwen2_eager() -> Measurements:
    """Raw scores of 231,000 in layer 3: fp16 + eager breaks, bf16 + eager loses accuracy."""
    healthy = measurements()
    broken = run(
        Dtype.FLOAT16,
        "eager",
        layers=layers(errors=FLOAT16_ERRORS, nan_from=3),
        logits=logits(kl=None, kl_max=None, top1=None, perplexity=None, num_nonfinite=821 * 320),
        overflows=(scores_overflow(),),
        reaches_output=True,
        symptom=Symptom(
            greedy="repeats token 0 (every logit is NaN, and argmax of NaN is index 0): !!!!!!!!",
            sampling=(
                "raises RuntimeError: probability tensor contains either `inf`, `nan` "
                "or element < 0"
            ),
        ),
    )
    coarse = run(
        Dtype.BFLOAT16,
        "eager",
        layers=layers(errors=(0.0021, 0.0032, 0.0041, 0.31, 0.34, 0.36)),
        logits=logits(kl=0.512, kl_max=6.2, top1=0.714, perplexity=9.02, parts_at=2),
    )
    return replace(
        healthy,
        model=replace(healthy.model, id="demo:qwen2-eager"),
        runs=(*healthy.runs[:3], broken, healthy.runs[4], coarse),
        headroom=headroom_rows(scores=231_000.0),
    )


def in_format(*, kl: float, top1: float, **changes: object) -> RunTrace:
    """A run of bfloat16 + sdpa with a format, which loses this much against float32."""
    finals = logits(kl=kl, kl_max=9 * kl, top1=top1)
    loss = FormatLoss(kl_divergence=0.9 * kl, kl_divergence_max=9 * kl, top1_agreement=top1)
    errors = tuple(error * 40 * kl for error in range(1, NUM_LAYERS + 1))
    trace = run(
        Dtype.BFLOAT16, "sdpa", layers=layers(errors=errors), logits=finals, format_loss=loss
    )
    return replace(trace, **changes)  # type: ignore[arg-type]


def formats() -> Measurements:
    """A healthy model that a 4-bit cache and 4-bit activations cost accuracy."""
    healthy = measurements()
    assert healthy.model.widths is not None
    return replace(
        healthy,
        model=replace(
            healthy.model,
            id="acme/formats",
            max_context=131_072,
            widths=replace(healthy.model.widths, layer_weights=1_048_576),
        ),
        runs=(
            *healthy.runs,
            in_format(kl=0.012, top1=0.953, kv_cache_dtype="fp8_e4m3"),
            in_format(kl=0.0031, top1=0.981, kv_cache_dtype="int8"),
            in_format(kl=0.292, top1=0.771, kv_cache_dtype="int4"),
            in_format(kl=0.0071, top1=0.968, quantization="int8_weight"),
            in_format(kl=0.034, top1=0.921, quantization="fp8"),
            in_format(kl=0.671, top1=0.562, quantization="nvfp4"),
        ),
        options=(
            "--kv-cache-dtype",
            "fp8_e4m3,int8,int4",
            "--quantization",
            "int8_weight,fp8,nvfp4",
        ),
    )


def broken_checkpoint() -> Measurements:
    """Parameters are missing, and one tensor holds NaN."""
    healthy = measurements()
    return replace(
        healthy,
        model=replace(healthy.model, id="demo:missing"),
        checkpoint=replace(
            healthy.checkpoint,
            missing=tuple(f"model.layers.{index}.mlp.down_proj.weight" for index in range(5)),
            unexpected=("model.layers.0.mlp.down_proj.qweight",),
            nonfinite=(TensorFault(name="model.norm.weight", num_elements=2),),
        ),
    )
