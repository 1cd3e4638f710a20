"""What engines do by default with a model on a device, where that is unsafe, and what to run."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, NamedTuple

from precheck.facts import engines
from precheck.facts.architectures import is_served
from precheck.facts.engines import Below, Engine
from precheck.facts.hardware import Support, is_slow
from precheck.judge.devices.standing import Standing, standing
from precheck.judge.prediction import FUSED, PRODUCTS
from precheck.records.advice import EngineAdvice
from precheck.records.configuration import Configuration
from precheck.records.finding import USABLE, VERBS, Confidence
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.report import ModelFacts

_LLAMA_CPP_TYPES = {Dtype.FLOAT16: "f16", Dtype.BFLOAT16: "bf16", Dtype.FLOAT32: "f32"}


class Default(NamedTuple):
    """What an engine chooses when no flag names a dtype; no dtype where it refuses."""

    dtype: Dtype | None
    words: str


def engine_advice(
    evidence: Evidence, *, device: Hardware, recommended: Configuration | None
) -> tuple[EngineAdvice, ...]:
    """A row for every engine.

    Args:
        evidence: the scan.
        device: that the advice is for.
        recommended: for this device; engines get its dtype where they can.
    """
    return tuple(
        _advice(evidence, engine, device=device, recommended=recommended)
        for engine in engines.table().engine
    )


def _advice(
    evidence: Evidence, engine: Engine, *, device: Hardware, recommended: Configuration | None
) -> EngineAdvice:
    model = evidence.measurements.model
    default = default_of(engine, model, device)
    outcome = None
    if default.dtype is not None:
        as_loaded = _with_default_attention(model, default.dtype)
        outcome = _outcome(evidence, engine, as_loaded, device=device)
    chosen = None
    if can_run(engine, model, device) is None:
        chosen = _choice(evidence, engine, device=device, default=default, recommended=recommended)
    links = engines.table().sources
    return EngineAdvice(
        engine=engine.name,
        version=engine.version,
        read=engines.table().read,
        default_dtype=default.dtype,
        default=f"{default.words}{_effect(evidence, outcome)}{_emulated(default.dtype, device)}",
        is_default_safe=None if outcome is None else _is_safe(outcome),
        command=None if chosen is None else _command(engine, evidence, chosen, default=default),
        why=_why(evidence, engine, device=device, chosen=chosen, default=default),
        sources=tuple(links[name] for name in engine.sources),
    )


def default_of(engine: Engine, model: ModelFacts, device: Hardware) -> Default:
    """The dtype an engine loads the model in when no flag names one.

    >>> from precheck.facts.devices import find
    >>> from precheck.facts.engines import engine
    >>> from precheck.records.report import ModelFacts
    >>> gemma = ModelFacts(id="g", revision=None, architecture="Gemma3ForCausalLM",
    ...     model_type="gemma3_text", decoder_layers="model.layers", num_decoder_layers=6,
    ...     num_parameters=1, declared_dtype="bfloat16", tensor_dtypes={"bfloat16": 1})
    >>> default_of(engine("vllm"), gemma, find("T4")).dtype
    <Dtype.FLOAT32: 'float32'>
    >>> default_of(engine("sglang"), gemma, find("T4")).words
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
    intended, words = _intended(engine, model, device)
    for_weights = _quantized_dtypes(engine, model)
    available = _available(engine, model, device)
    if intended not in for_weights and engine.default_dtype == "declared":
        return Default(None, f"refuses {intended} for {_method(model)} weights")
    if intended not in for_weights:
        return Default(for_weights[0], f"{for_weights[0]} (for {_method(model)} weights)")
    if intended not in available:
        words = f"falls back from {intended} to {available[0]}, with a warning"
        intended = available[0]
    return Default(intended, words)


def can_run(engine: Engine, model: ModelFacts, device: Hardware) -> str | None:
    """Why the engine does not run the model there at all; None if it does."""
    unread = _unread(engine, model)
    if unread is not None:
        return unread
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


def _unread(engine: Engine, model: ModelFacts) -> str | None:
    """Why the engine does not take the checkpoint on any device; None if it does."""
    if not is_served(engine.id, model.architecture):
        return f"not known to support {model.architecture}"
    if model.gguf_file is not None and engine.gguf_command is None:
        return "GGUF files are not considered here"
    return None


def _intended(engine: Engine, model: ModelFacts, device: Hardware) -> tuple[Dtype, str]:
    """What it loads where device and weights allow every dtype, also in words."""
    declared = _declared(model)
    if model.gguf_file is not None and engine.residual_in_float32:
        return Dtype.FLOAT32, "float32 between products, weights as the file has them"
    if engine.default_dtype != "declared":
        for dtype, model_types in engine.families.items():
            if model.model_type in model_types:
                return dtype, f"{dtype} (engine default for {model.model_type})"
        return Dtype(engine.default_dtype), f"{engine.default_dtype} (engine default)"
    if not declared.is_reference or engine.float32_becomes == "keeps":
        return declared, f"{declared} (from config)"
    dtype = _in_place_of_float32(engine, model, device)
    if dtype.is_reference:
        return dtype, f"{dtype} (from config)"
    return dtype, f"{dtype} instead of float32"


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
    return Dtype.BFLOAT16 if model.deployed is None else model.deployed.dtype


def _available(engine: Engine, model: ModelFacts, device: Hardware) -> tuple[Dtype, ...]:
    """Dtypes the engine chooses by itself on the device, in its own order."""
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
    """Whether the engine treats the device as one without bfloat16."""
    capability = device.capability
    if capability is None or engine.bfloat16_from is None:
        return False
    return capability < engine.bfloat16_from


def _method(model: ModelFacts) -> str | None:
    method = (model.quantization or {}).get("quant_method")
    return None if method is None else str(method)


def _quantized_dtypes(engine: Engine, model: ModelFacts) -> tuple[Dtype, ...]:
    return engine.quantized.get(_method(model) or "", engine.dtypes)


def _with_default_attention(model: ModelFacts, dtype: Dtype) -> Configuration:
    attn_implementation = model.default_attn_implementation or FUSED
    return Configuration(dtype=dtype, attn_implementation=attn_implementation)


def _outcome(
    evidence: Evidence, engine: Engine, configuration: Configuration, *, device: Hardware
) -> Standing:
    """What to expect of a configuration in the engine, which may have its own attention."""
    if not engine.scores_in_float32:
        return standing(evidence, configuration, device=device)
    return standing(
        evidence,
        configuration.with_attention(FUSED),
        device=device,
        mechanisms=PRODUCTS if engine.residual_in_float32 else None,
    )


def _is_safe(outcome: Standing) -> bool | None:
    """Whether an engine's default is safe; None where that is not known.

    What is documented for other checkpoints of the family can count against it, but not for it.
    """
    is_usable = outcome.prediction.is_usable
    is_hearsay = outcome.prediction.confidence is Confidence.DOCUMENTED
    return None if is_usable and (is_hearsay or outcome.lacks is not None) else is_usable


def _choice(
    evidence: Evidence,
    engine: Engine,
    *,
    device: Hardware,
    default: Default,
    recommended: Configuration | None,
) -> Configuration | None:
    """What to ask the engine for: what is recommended, else its default or another that is safe."""
    model = evidence.measurements.model
    if recommended is not None and not engine.scores_in_float32:
        return recommended
    preferred = None if recommended is None else recommended.dtype
    candidates = [
        dtype for dtype in _candidates(engine, model, device) if not is_slow(dtype, device)
    ]
    candidates.sort(key=lambda dtype: (dtype is not preferred, dtype is not default.dtype))
    if default.dtype is not None and default.dtype not in candidates:
        candidates.append(default.dtype)
    for dtype in candidates:
        configuration = _with_default_attention(model, dtype)
        is_safe = _is_safe(_outcome(evidence, engine, configuration, device=device))
        # where nothing is known, the engine gets what is recommended all the same
        if is_safe or (is_safe is None and dtype is preferred):
            return configuration
    return None


def _candidates(engine: Engine, model: ModelFacts, device: Hardware) -> tuple[Dtype, ...]:
    """The dtypes that the engine supports on the device, by flag."""
    if _lacks_bfloat16(engine, device) and engine.below_bfloat16 is Below.FORCES:
        return (Dtype.FLOAT16,)
    forced = engine.forced.get(model.architecture)
    if forced is not None:
        return (forced,)
    for_weights = _quantized_dtypes(engine, model)
    return tuple(dtype for dtype in _available(engine, model, device) if dtype in for_weights)


def _command(engine: Engine, evidence: Evidence, chosen: Configuration, *, default: Default) -> str:
    """The line to type; it names what is chosen only where the engine would not choose it."""
    model = evidence.measurements.model
    path = shlex.quote(model.local_id)
    is_default = chosen.dtype is default.dtype and (
        engine.scores_in_float32 or chosen.attn_implementation == model.default_attn_implementation
    )
    flag = engine.flag.format(
        dtype=chosen.dtype,
        attn=f'"{chosen.attn_implementation}"',
        gguf=_LLAMA_CPP_TYPES[chosen.dtype],
    )
    if is_default:
        flag = ""
    if model.gguf_file is not None and engine.gguf_command is not None:
        file = model.gguf_file if model.id.endswith(f":{model.gguf_file}") else model.id
        return engine.gguf_command.format(
            file=shlex.quote(file), arguments=model.load_arguments, flag=flag
        )
    return engine.command.format(model=path, folder=path, flag=flag)


def _effect(evidence: Evidence, outcome: Standing | None) -> str:
    if outcome is None:
        return ""
    verdict = outcome.prediction.verdict
    if _is_safe(outcome) is None and not evidence.runs:
        return ", not measured"
    if verdict is None:
        return f": {outcome.prediction.why}"
    return "" if verdict in USABLE else f", which {VERBS[verdict]}"


def _emulated(dtype: Dtype | None, device: Hardware) -> str:
    if dtype is Dtype.BFLOAT16 and device.emulates_bfloat16:
        return ", emulated on this device"
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
        return default.words
    if chosen is not None:
        outcome = _outcome(evidence, engine, chosen, device=device).prediction
        return f"{chosen.dtype}: {outcome.why or str(outcome.verdict).replace('_', ' ')}"
    if _lacks_bfloat16(engine, device) and engine.below_bfloat16 is Below.FORCES:
        return (
            f"no flag helps: below sm_80 {engine.name} runs everything in float16; use another "
            "engine or another GPU"
        )
    return f"no dtype it runs natively on {device.name} is known to be safe"
