"""What to do about an overflow, in words; never what the class or the device lacks, or what broke.

The sentences are built from what ``standing`` accepts on every device that the advice is for, so
that a finding never names a kernel that the same report rejects further down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.attention import names, preference, why_unwatchable
from precheck.judge.devices.standing import standing
from precheck.records.finding import Verdict
from precheck.records.mechanism import MECHANISMS, Mechanism
from precheck.records.precision import Dtype
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration

_MOST_NAMES = 2
"""Attention implementations that a sentence names; the table beside the advice has all."""
_DTYPES = (Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32)


def cure(evidence: Evidence, mechanism: Mechanism, *, broken: Configuration) -> str:
    """What to use instead of a configuration in which this mechanism breaks, as sentences."""
    facts = MECHANISMS[mechanism]
    sentences = []
    if facts.is_in_scores:
        sentences.append(_another_attention(evidence, broken))
    elif facts.is_of_the_dtype:
        sentences.append(f"Use {another_dtype(evidence, broken)}.")
    is_rescalable = broken.dtype is Dtype.FLOAT16 and may_be_rescaled(evidence, (mechanism,))
    if is_rescalable and any(_may_lack_bfloat16(device) for device in evidence.devices):
        sentences.append(
            "Where bfloat16 is not native, precheck fix may rescale the model for float16."
        )
    return " ".join(filter(None, (*sentences, facts.hint)))


def another_dtype(evidence: Evidence, broken: Configuration) -> str:
    """The dtypes to use instead: ``bfloat16 or float32``, by device where they differ."""
    dtypes = {device.name: _dtypes(evidence, broken, device) for device in evidence.devices}
    different = set(dtypes.values())
    if len(different) == 1:
        return different.pop()
    return ", ".join(f"{words} on {name}" for name, words in dtypes.items())


def measured_safe(evidence: Evidence) -> tuple[str, ...]:
    """The 16-bit configurations that were measured safe and are available on every device."""
    return tuple(
        dict.fromkeys(
            run.name
            for run in evidence.runs
            if run.verdict is Verdict.SAFE
            and not run.dtype.is_reference
            and not run.configuration.has_format
            and on_every_device(evidence, run.configuration)
        )
    )


def may_be_rescaled(evidence: Evidence, mechanisms: Iterable[Mechanism]) -> bool:
    """Whether powers of two may bring all of this into float16's range (``precheck fix``).

    False where ``precheck fix`` refuses or is known to fail: quantised weights, models that are
    more than a decoder, modeling code that clamps, and a live module, which has no checkpoint.
    """
    model = evidence.measurements.model
    sections = {layer.section for run in evidence.runs for layer in run.layers}
    return (
        all(MECHANISMS[mechanism].is_rescalable for mechanism in mechanisms)
        and model.auto_class == "AutoModelForCausalLM"
        and model.id != model.architecture
        and model.quantization is None
        and not model.clamps
        and sections <= {Section.DECODER}
    )


def _another_attention(evidence: Evidence, broken: Configuration) -> str:
    fused = [
        name
        for name in sorted(names(), key=preference)
        if name not in {broken.attn_implementation, "eager"}
        and on_every_device(evidence, broken.with_attention(name))
    ]
    # what cannot be watched only where nothing else is there
    fused = [name for name in fused if why_unwatchable(name) is None] or fused
    if fused:
        listed = " or ".join(f'"{name}"' for name in fused[:_MOST_NAMES])
        return (
            f"Load with attn_implementation={listed}, which does not materialise the scores; do "
            "not pass output_attentions=True, which forces eager."
        )
    where = " and ".join(device.name for device in evidence.devices)
    dtype = another_dtype(evidence, broken)
    return f"No other attention implementation is available on {where}: use {dtype}."


def _dtypes(evidence: Evidence, broken: Configuration, device: Hardware) -> str:
    fine = [
        dtype
        for dtype in _DTYPES
        if dtype is not broken.dtype
        and standing(evidence, _in_dtype(broken, dtype), device=device).may_be_advised
    ]
    return " or ".join(fine) or "another model: no dtype works for this one"


def _in_dtype(configuration: Configuration, dtype: Dtype) -> Configuration:
    return type(configuration)(dtype=dtype, attn_implementation=configuration.attn_implementation)


def on_every_device(evidence: Evidence, configuration: Configuration) -> bool:
    """Whether a configuration may be advised on all devices that are advised for."""
    return all(
        standing(evidence, configuration, device=device).may_be_advised
        for device in evidence.devices
    )


def _may_lack_bfloat16(device: Hardware) -> bool:
    return device.kind == "cpu" or device.emulates_bfloat16
