"""What may be advised: what model class and device support, and the scan did not see break.

Every piece of advice asks ``standing``: findings, the recommendation, the table of attention
implementations, engines and smaller remedies. Nothing is named that it did not accept, so that no
sentence contradicts another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.attention import Implementation, implementation
from precheck.facts.hardware import Support
from precheck.judge.devices.sdpa import MATH_KERNEL, falls_to_math
from precheck.judge.prediction import FUSED, Prediction, predict
from precheck.records.finding import USABLE, Confidence
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration
    from precheck.records.mechanism import Mechanism
    from precheck.records.sizes import AttentionFacts


class Standing(NamedTuple):
    """Whether a device has a configuration, and what to expect of it."""

    lacks: str | None
    """Why the class or the device does not have it; None where both have it."""
    prediction: Prediction
    """What to expect of it, measured or predicted."""

    @property
    def may_be_advised(self) -> bool:
        """Whether it is available and has no known problem."""
        return self.lacks is None and self.prediction.is_usable is not False


def standing(
    evidence: Evidence,
    configuration: Configuration,
    *,
    device: Hardware,
    mechanisms: frozenset[Mechanism] | None = None,
) -> Standing:
    """Whether a configuration is available on a device, and what to expect of it there.

    Args:
        evidence: the scan.
        configuration: its attention implementation is transformers' name, or ``FUSED`` for the
            attention that an engine has of its own.
        device: that the advice is for.
        mechanisms: only these are in 16 bits; None: whatever the model has in them.
    """
    lacks = lacks_dtype(evidence, configuration, device=device) or lacks_attention(
        evidence, configuration, device=device
    )
    prediction = predict(evidence, configuration, mechanisms=mechanisms)
    if configuration.attn_implementation == FUSED and mechanisms is None:
        prediction = _not_contradicted(evidence, configuration, prediction)
    return Standing(lacks, prediction)


def lacks_dtype(
    evidence: Evidence, configuration: Configuration, *, device: Hardware
) -> str | None:
    """Why the device does not compute in the dtype; None where it does."""
    dtype = configuration.dtype
    if device.support(dtype) is Support.NONE:
        return f"{device.name} does not support {dtype}"
    if dtype is not Dtype.BFLOAT16 or not device.emulates_bfloat16:
        return None
    where = device.compute_capability or device.name
    attention = evidence.measurements.model.attention
    is_sdpa = configuration.attn_implementation == "sdpa"
    is_math = is_sdpa and falls_to_math(device, dtype, attention)
    math = f", and sdpa uses {MATH_KERNEL}" if is_math else ""
    return f"bfloat16 is only emulated on {where}{math}"


def lacks_attention(
    evidence: Evidence, configuration: Configuration, *, device: Hardware
) -> str | None:
    """Why the class or the device does not have the attention implementation; None: both have it.

    A class that was measured with an implementation has it, whatever it announces.
    """
    name = configuration.attn_implementation
    if name in {"", FUSED}:
        return None
    attention = evidence.measurements.model.attention
    was_run = any(run.attn_implementation == name for run in evidence.runs if run.failure is None)
    if attention is not None and not was_run and (why := _not_in_class(name, attention)):
        return why
    row = implementation(name)
    return None if row is None else _not_on_device(row, attention, configuration, device=device)


def _not_in_class(name: str, attention: AttentionFacts) -> str | None:
    if name in (attention.flash_kernels or ()):
        return None
    if name.startswith("flash") and attention.flash_kernels is not None:
        return f"the model works only with {', '.join(attention.flash_kernels)}"
    if name not in attention.supported:
        return "the model class does not support it"
    return None


def _not_on_device(
    row: Implementation,
    attention: AttentionFacts | None,
    configuration: Configuration,
    *,
    device: Hardware,
) -> str | None:
    """Why the device, or the kernel, does not take it."""
    where = device.compute_capability or device.name
    runs = row.runs_on(device)
    if not runs:
        return f"not known to run on {where}" if runs is None else f"has no kernels for {where}"
    if configuration.dtype not in row.dtypes:
        return f"supports {' and '.join(row.dtypes)}, not {configuration.dtype}"
    return None if attention is None else _not_with_such_heads(row, attention, device=device)


def _not_with_such_heads(
    row: Implementation, attention: AttentionFacts, *, device: Hardware
) -> str | None:
    if not row.takes_head_dim(attention.head_dim, device):
        return f"does not support head size {attention.head_dim}"
    if attention.softcap is not None and not row.softcap:
        return "has no softcap, which the model needs"
    if attention.has_sinks and not row.sinks:
        return "has no attention sinks, which the model needs"
    return None


def _not_contradicted(
    evidence: Evidence, configuration: Configuration, prediction: Prediction
) -> Prediction:
    """No promise of an engine's attention where all that ran in the dtype broke.

    Its kernel may do better than the eager attention that was measured; nobody has seen it.
    """
    ran = [
        run
        for run in evidence.runs
        if run.failure is None and run.configuration.with_attention(FUSED) == configuration
    ]
    if not ran or any(run.verdict in USABLE for run in ran) or not prediction.is_usable:
        return prediction
    names = " and ".join(dict.fromkeys(run.name for run in ran))
    return Prediction(
        None,
        Confidence.PREDICTED,
        f"{names} failed, and the engine's own attention was not measured",
    )
