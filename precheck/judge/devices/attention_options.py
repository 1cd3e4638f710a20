"""Which attention implementations a model can have on a device, and what each amounts to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.attention import Implementation, fastest_first, implementation
from precheck.judge.devices.sdpa import sdpa_kernel
from precheck.judge.prediction import predict
from precheck.records.advice import AttentionOption
from precheck.records.finding import Confidence

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration
    from precheck.records.precision import Dtype
    from precheck.records.sizes import AttentionFacts


def attention_options(
    evidence: Evidence,
    configuration: Configuration,
    *,
    device: Hardware,
    is_measured_there: bool,
) -> tuple[AttentionOption, ...]:
    """A configuration with every attention implementation of transformers, fastest first.

    Empty if the model's are not known: a report of an earlier version, or a live module that is no
    transformers model.
    """
    attention = evidence.measurements.model.attention
    if attention is None:
        return ()
    names = dict.fromkeys((*fastest_first(), *(attention.flash_kernels or ())))
    return tuple(
        _option(
            evidence,
            configuration.with_attention(name),
            device=device,
            attention=attention,
            is_measured_there=is_measured_there,
        )
        for name in names
    )


def _option(
    evidence: Evidence,
    configuration: Configuration,
    *,
    device: Hardware,
    attention: AttentionFacts,
    is_measured_there: bool,
) -> AttentionOption:
    name, dtype = configuration.attn_implementation, configuration.dtype
    row = implementation(name)
    why_not = _not_in_model(name, attention) or (
        None if row is None else _not_on_device(row, attention, device=device, dtype=dtype)
    )
    prediction = predict(evidence, configuration)
    is_installed = _is_installed(row, evidence)
    kernel, verdict, reasons = None, None, [why_not]
    if why_not is None:
        verdict = prediction.verdict
        kernel, why_kernel = _kernels(device, dtype, attention) if name == "sdpa" else (None, "")
        reasons = [why_kernel, prediction.why, "" if is_installed else _to_install(row)]
    confidence = prediction.confidence
    if confidence is Confidence.MEASURED and not is_measured_there:
        confidence = Confidence.PREDICTED
    return AttentionOption(
        **configuration.as_fields(AttentionOption),
        usable=why_not is None,
        installed=is_installed,
        kernel=kernel,
        verdict=verdict,
        confidence=confidence,
        why="; ".join(filter(None, reasons)),
    )


def _not_in_model(name: str, attention: AttentionFacts) -> str | None:
    """Why the model does not have it."""
    if name in (attention.flash_kernels or ()):
        return None
    if name.startswith("flash") and attention.flash_kernels is not None:
        return f"the model works with {', '.join(attention.flash_kernels)} alone"
    if name not in attention.supported:
        return "its class does not have it"
    return None


def _not_on_device(
    row: Implementation, attention: AttentionFacts, *, device: Hardware, dtype: Dtype
) -> str | None:
    """Why the device, or the kernel, does not take it."""
    where = device.compute_capability or device.name
    runs = row.runs_on(device)
    if not runs:
        return f"not known to run on {where}" if runs is None else f"has no kernels for {where}"
    if dtype not in row.dtypes:
        return f"takes {' and '.join(row.dtypes)}, not {dtype}"
    if not row.takes_head_dim(attention.head_dim, device):
        return f"heads of {attention.head_dim} elements are too large for it"
    if attention.softcap is not None and not row.softcap:
        return "has no softcap, and the model caps its scores"
    if attention.has_sinks and not row.sinks:
        return "has no attention sinks, and the model needs them"
    return None


def _kernels(device: Hardware, dtype: Dtype, attention: AttentionFacts) -> tuple[str | None, str]:
    """What torch runs without padding and with it, and why."""
    plain = sdpa_kernel(device, dtype, attention, is_masked=False)
    padded = sdpa_kernel(device, dtype, attention, is_masked=True)
    if plain is None or padded is None:
        return None, ""
    cost = (
        "; the math kernel holds a matrix of all tokens against all tokens for every head"
        if plain.is_math
        else ""
    )
    if plain.name == padded.name:
        return plain.name, f"{plain.why}{cost}"
    return f"{plain.name}, {padded.name} with padding", f"{plain.why}; {padded.why}{cost}"


def _is_installed(row: Implementation | None, evidence: Evidence) -> bool:
    libraries = evidence.measurements.environment.libraries
    if row is None:
        return "kernels" in libraries
    if not row.packages:
        return True
    from_hub = row.hub_kernel is not None and "kernels" in libraries
    return from_hub or any(package in libraries for package in row.packages)


def _to_install(row: Implementation | None) -> str:
    if row is None or not row.packages:
        return "not installed here (pip install kernels)"
    package = row.packages[0].replace("_", "-")
    return f"not installed here (pip install {package}, or kernels)"
