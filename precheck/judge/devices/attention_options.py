"""Which attention implementations a model can have on a device, and what each amounts to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.attention import Implementation, fastest_first, implementation
from precheck.judge.devices.sdpa import sdpa_kernel
from precheck.judge.prediction import predict
from precheck.records.advice import AttentionOption
from precheck.records.finding import Confidence

if TYPE_CHECKING:
    from precheck.facts.devices import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.precision import Dtype
    from precheck.records.sizes import AttentionFacts


def attention_options(
    evidence: Evidence, *, device: Hardware, dtype: Dtype, is_measured_there: bool
) -> tuple[AttentionOption, ...]:
    """Every implementation of transformers in one dtype, fastest first.

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
            name,
            device=device,
            dtype=dtype,
            attention=attention,
            is_measured_there=is_measured_there,
        )
        for name in names
    )


def _option(
    evidence: Evidence,
    name: str,
    *,
    device: Hardware,
    dtype: Dtype,
    attention: AttentionFacts,
    is_measured_there: bool,
) -> AttentionOption:
    known = implementation(name)
    why_not = _not_in_model(name, attention) or (
        None if known is None else _not_on_device(known, attention, device=device, dtype=dtype)
    )
    kernel = None
    if why_not is None and name == "sdpa":
        kernel, why = _kernels(device, dtype, attention)
    elif why_not is None:
        why = ""
    else:
        why = why_not
    found = predict(evidence, dtype, name)
    verdict = found.verdict if why_not is None else None
    confidence = found.confidence
    if confidence is Confidence.MEASURED and not is_measured_there:
        confidence = Confidence.PREDICTED
    installed = _is_installed(known, evidence)
    return AttentionOption(
        attn_implementation=name,
        dtype=dtype,
        usable=why_not is None,
        installed=installed,
        kernel=kernel,
        verdict=verdict,
        confidence=confidence,
        why="; ".join(
            each
            for each in (
                why,
                found.why if why_not is None else "",
                _to_install(known) if why_not is None and not installed else "",
            )
            if each
        ),
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
    known: Implementation, attention: AttentionFacts, *, device: Hardware, dtype: Dtype
) -> str | None:
    """Why the device, or the kernel, does not take it."""
    where = device.compute_capability or device.name
    runs = known.runs_on(device)
    if not runs:
        return f"not known to run on {where}" if runs is None else f"has no kernels for {where}"
    if dtype not in known.dtypes:
        return f"takes {' and '.join(known.dtypes)}, not {dtype}"
    if not known.takes_head_dim(attention.head_dim, device):
        return f"heads of {attention.head_dim} elements are too large for it"
    if attention.softcap is not None and not known.softcap:
        return "has no softcap, and the model caps its scores"
    if attention.has_sinks and not known.sinks:
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


def _is_installed(known: Implementation | None, evidence: Evidence) -> bool:
    libraries = evidence.measurements.environment.libraries
    if known is None:
        return "kernels" in libraries
    if not known.packages:
        return True
    from_hub = known.hub_kernel is not None and "kernels" in libraries
    return from_hub or any(each in libraries for each in known.packages)


def _to_install(known: Implementation | None) -> str:
    if known is None or not known.packages:
        return "not installed here (pip install kernels)"
    package = known.packages[0].replace("_", "-")
    return f"not installed here (pip install {package}, or kernels)"
