"""Which attention implementations a model can use on a device, and what to expect of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.attention import Implementation, fastest_first, implementation
from precheck.judge.devices.sdpa import sdpa_kernel
from precheck.judge.devices.standing import lacks_attention, standing
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
    why_not = lacks_attention(evidence, configuration, device=device)
    prediction = standing(evidence, configuration, device=device).prediction
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


def _kernels(device: Hardware, dtype: Dtype, attention: AttentionFacts) -> tuple[str | None, str]:
    """What torch runs without padding and with it, and why."""
    plain = sdpa_kernel(device, dtype, attention, is_masked=False)
    padded = sdpa_kernel(device, dtype, attention, is_masked=True)
    if plain is None or padded is None:
        return None, ""
    cost = "; the math kernel materialises an N x N matrix for every head" if plain.is_math else ""
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
