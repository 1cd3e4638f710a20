"""What engines do by default with a model on a device, where that is unsafe, and what to run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from precheck.facts import engines
from precheck.facts.devices import Support, is_slow
from precheck.facts.engines import Below, Engine
from precheck.judge.prediction import FUSED, PRODUCTS, Prediction, predict
from precheck.records.advice import EngineAdvice
from precheck.records.configuration import Configuration
from precheck.records.finding import Verdict
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.facts.devices import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.report import ModelFacts

_LLAMA_CPP_TYPES = {Dtype.FLOAT16: "f16", Dtype.BFLOAT16: "bf16", Dtype.FLOAT32: "f32"}

_EFFECTS = {
    Verdict.OVERFLOW: "overflows",
    Verdict.DEGRADED: "loses accuracy",
    Verdict.FAILED: "could not be run",
}


class Default(NamedTuple):
    """What an engine chooses when it is told nothing; no dtype where it refuses."""

    dtype: Dtype | None
    said: str


def engine_advice(
    evidence: Evidence, *, device: Hardware, recommended: Configuration | None
) -> tuple[EngineAdvice, ...]:
    """A row for every engine.

    Args:
        evidence: the scan.
        device: advised for.
        recommended: for this device; engines get its dtype where they can.
    """
    return tuple(
        _advice(evidence, each, device=device, recommended=recommended)
        for each in engines.table().engine
    )


def _advice(
    evidence: Evidence, engine: Engine, *, device: Hardware, recommended: Configuration | None
) -> EngineAdvice:
    model = evidence.measurements.model
    default = default_of(engine, model, device)
    attn = model.default_attn_implementation or FUSED
    found = None if default.dtype is None else _outcome(evidence, engine, default.dtype, attn)
    chosen = None
    if can_run(engine, model, device) is None:
        chosen = _choice(evidence, engine, device=device, recommended=recommended)
    links = engines.table().sources
    return EngineAdvice(
        engine=engine.name,
        version=engine.version,
        read=engines.table().read,
        default_dtype=default.dtype,
        default=f"{default.said}{_effect(found)}{_emulated(default.dtype, device)}",
        is_default_safe=None if found is None else found.is_usable,
        command=None if chosen is None else _command(engine, evidence, chosen),
        why=_why(evidence, engine, device=device, chosen=chosen, default=default),
        sources=tuple(links[each] for each in engine.sources),
    )


def default_of(engine: Engine, model: ModelFacts, device: Hardware) -> Default:
    """The dtype an engine loads the model in when it is told nothing.

    >>> from precheck.facts.devices import find
    >>> from precheck.facts.engines import engine
    >>> from precheck.records.report import ModelFacts
    >>> gemma = ModelFacts(id="g", revision=None, architecture="Gemma3ForCausalLM",
    ...     model_type="gemma3_text", decoder_layers="model.layers", num_decoder_layers=6,
    ...     num_parameters=1, declared_dtype="bfloat16", tensor_dtypes={"bfloat16": 1})
    >>> default_of(engine("vllm"), gemma, find("T4")).dtype
    <Dtype.FLOAT32: 'float32'>
    >>> default_of(engine("sglang"), gemma, find("T4")).said
    'forces float16'
    """
    refusal = can_run(engine, model, device)
    if refusal is not None:
        return Default(None, refusal)
    if _lacks_bfloat16(engine, device) and engine.below_bfloat16 is Below.FORCES:
        return Default(Dtype.FLOAT16, "forces float16")
    forced = engine.forced.get(model.architecture)
    if forced is not None:
        return Default(forced, f"forces {forced}")
    wanted, said = _wanted(engine, model, device)
    takes = _quantized_dtypes(engine, model)
    available = _available(engine, model, device)
    if wanted not in takes and engine.default_dtype == "declared":
        return Default(None, f"refuses {wanted} for {_method(model)} weights")
    if wanted not in takes:
        return Default(takes[0], f"{takes[0]}, which {_method(model)} weights get")
    if wanted not in available:
        said = f"falls back from {wanted} to {available[0]}, with a warning"
        wanted = available[0]
    return Default(wanted, said)


def can_run(engine: Engine, model: ModelFacts, device: Hardware) -> str | None:
    """Why the engine does not run there at all; None if it does."""
    where = device.compute_capability or device.name
    if device.kind not in engine.kinds:
        return f"does not run on {device.name}"
    capability = device.capability
    if capability is None:
        return None
    if engine.min_capability is not None and capability < engine.min_capability:
        major, minor = engine.min_capability
        return f"does not run on {where}: it needs sm_{major}{minor}"
    least = engine.quantized_from.get(_method(model) or "")
    if least is not None and capability[0] * 10 + capability[1] < least:
        return f"has no {_method(model)} kernels below sm_{least}"
    return None


def _wanted(engine: Engine, model: ModelFacts, device: Hardware) -> tuple[Dtype, str]:
    """What it would take if everything were there."""
    declared = _declared(model)
    if engine.default_dtype != "declared":
        for dtype, model_types in engine.families.items():
            if model.model_type in model_types:
                return dtype, f"{dtype}, its default for {model.model_type}"
        return Dtype(engine.default_dtype), f"{engine.default_dtype}, its default"
    if not declared.is_reference or engine.float32_becomes == "keeps":
        return declared, f"{declared}, as the checkpoint declares"
    dtype = _in_place_of_float32(engine, model, device)
    return dtype, f"{dtype} in place of float32"


def _in_place_of_float32(engine: Engine, model: ModelFacts, device: Hardware) -> Dtype:
    for prefix, dtype in engine.float32_exceptions.items():
        if model.model_type.startswith(prefix):
            return dtype
    is_encoder = model.attention is not None and not model.attention.is_causal
    available = _available(engine, model, device)
    if is_encoder and engine.float32_pooling in available:
        return Dtype(engine.float32_pooling)
    return available[0] if engine.float32_becomes == "first" else Dtype(engine.float32_becomes)


def _declared(model: ModelFacts) -> Dtype:
    """What ``dtype="auto"`` gives; bfloat16 for dtypes that precheck does not measure."""
    declared = model.deploy_dtype
    return Dtype(declared) if declared in set(Dtype) else Dtype.BFLOAT16


def _available(engine: Engine, model: ModelFacts, device: Hardware) -> tuple[Dtype, ...]:
    """Dtypes the engine runs there without being told to, in its own order."""
    order = (Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32)
    return tuple(
        dtype
        for dtype in order
        if dtype in engine.dtypes
        and not (dtype is Dtype.FLOAT16 and model.model_type in engine.refuses_float16)
        and not (
            dtype is Dtype.BFLOAT16
            and engine.below_bfloat16 is not Below.KEEPS
            and _lacks_bfloat16(engine, device)
        )
        and device.support(dtype) is not Support.NONE
    )


def _lacks_bfloat16(engine: Engine, device: Hardware) -> bool:
    """Whether the engine takes the device for one without bfloat16."""
    capability = device.capability
    if capability is None or engine.bfloat16_from is None:
        return False
    return capability < engine.bfloat16_from


def _method(model: ModelFacts) -> str | None:
    found = (model.quantization or {}).get("quant_method")
    return None if found is None else str(found)


def _quantized_dtypes(engine: Engine, model: ModelFacts) -> tuple[Dtype, ...]:
    return engine.quantized.get(_method(model) or "", engine.dtypes)


def _outcome(evidence: Evidence, engine: Engine, dtype: Dtype, attn: str) -> Prediction:
    """What a dtype amounts to in the engine; ``attn`` counts where it uses transformers' own."""
    if not engine.scores_in_float32:
        return predict(evidence, dtype, attn)
    return predict(
        evidence, dtype, FUSED, mechanisms=PRODUCTS if engine.residual_in_float32 else None
    )


def _choice(
    evidence: Evidence, engine: Engine, *, device: Hardware, recommended: Configuration | None
) -> Configuration | None:
    """What to ask the engine for: what is recommended, else the first dtype that is safe there."""
    model = evidence.measurements.model
    attn = model.default_attn_implementation or FUSED
    if recommended is not None and not engine.scores_in_float32:
        return recommended
    forced = engine.forced.get(model.architecture)
    candidates: tuple[Dtype, ...]
    if _lacks_bfloat16(engine, device) and engine.below_bfloat16 is Below.FORCES:
        candidates = (Dtype.FLOAT16,)
    elif forced is not None:
        candidates = (forced,)
    else:
        takes = _quantized_dtypes(engine, model)
        candidates = tuple(each for each in _available(engine, model, device) if each in takes)
    preferred = None if recommended is None else recommended.dtype
    fast = [each for each in candidates if not is_slow(each, device)]
    for dtype in sorted(fast, key=lambda each: each is not preferred):
        is_usable = _outcome(evidence, engine, dtype, attn).is_usable
        # where nothing tells, the engine gets what is recommended all the same
        if is_usable or (is_usable is None and dtype is preferred):
            return Configuration(dtype=dtype, attn_implementation=attn)
    return None


def _command(engine: Engine, evidence: Evidence, chosen: Configuration) -> str:
    path = evidence.measurements.model.local_id
    return engine.command.format(
        model=shlex.quote(path),
        folder=shlex.quote(path),
        dtype=chosen.dtype,
        attn=f'"{chosen.attn_implementation}"',
        gguf=_LLAMA_CPP_TYPES[chosen.dtype],
    )


def _effect(found: Prediction | None) -> str:
    if found is None:
        return ""
    if found.verdict is None:
        return ": not measured"
    return f": {_EFFECTS[found.verdict]}" if found.verdict in _EFFECTS else ""


def _emulated(dtype: Dtype | None, device: Hardware) -> str:
    if dtype is Dtype.BFLOAT16 and device.emulates_bfloat16:
        return ", only emulated there"
    return ""


def _why(
    evidence: Evidence,
    engine: Engine,
    *,
    device: Hardware,
    chosen: Configuration | None,
    default: Default,
) -> str:
    if can_run(engine, evidence.measurements.model, device) is not None:
        return default.said
    if chosen is not None:
        found = _outcome(evidence, engine, chosen.dtype, chosen.attn_implementation)
        return f"{chosen.dtype}: {found.why or str(found.verdict).replace('_', ' ')}"
    if _lacks_bfloat16(engine, device) and engine.below_bfloat16 is Below.FORCES:
        return (
            f"no flag helps: below sm_80 {engine.name} runs everything in float16; use another "
            "engine or another GPU"
        )
    return f"no dtype it runs natively on {device.name} is known to be safe"
