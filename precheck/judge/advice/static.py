"""What to use on a device if nothing was run: declared dtype, documented faults, hardware, fit.

The same order as for measured configurations (``ranking``), with what is documented for the family
in the place of a verdict and the dtype the checkpoint declares in the place of precision. Whether
float16 has the range for a checkpoint that does not declare it is not known: bfloat16, which has
float32's range, is preferred where the device has it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.hardware import Hardware, is_slow
from precheck.judge.advice.recommend import completed, rejected, snippets, why_nothing
from precheck.judge.devices.fit import does_not_fit, fit, fits_words
from precheck.judge.devices.standing import standing
from precheck.judge.prediction import predict
from precheck.records.advice import Recommendation
from precheck.records.configuration import Configuration
from precheck.records.finding import Confidence
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.judge.evidence import Evidence


class UnmeasuredRank(NamedTuple):
    """How good a dtype is as far as is known; smaller is better, compared from left to right."""

    does_not_fit: bool
    is_slow: bool
    num_bytes: int
    may_overflow: bool
    """The checkpoint's own dtype has more range."""
    is_not_declared: bool
    name: str


def recommend_unmeasured(evidence: Evidence, *, device: Hardware) -> Recommendation:
    """What to use on this device as far as anything is known without running the model."""
    model = evidence.measurements.model
    attn = model.default_attn_implementation or "sdpa"
    broken = why_nothing(evidence)
    excluded: dict[Configuration, str] = {}
    ranks: dict[Configuration, UnmeasuredRank] = {}
    for dtype in Dtype:
        configuration = Configuration(dtype=dtype, attn_implementation=attn)
        why = broken or _why_not(evidence, configuration, device=device)
        if why is not None:
            excluded[configuration] = why
            continue
        ranks[configuration] = UnmeasuredRank(
            does_not_fit=fit(evidence.measurements, device=device, dtype=dtype).fits is False,
            is_slow=is_slow(dtype, device),
            num_bytes=dtype.limits.num_bytes,
            may_overflow=_may_overflow(evidence, dtype),
            is_not_declared=dtype != model.deploy_dtype,
            name=str(configuration),
        )
    chosen = min(ranks, key=ranks.__getitem__, default=None)
    if chosen is None:
        choice = Recommendation(
            dtype=None,
            attn_implementation=None,
            target=device.target,
            reasons=(broken or f"no dtype can be used on {device.name}",),
            rejected=rejected(excluded),
            snippets={},
            confidence=Confidence.PREDICTED,
        )
    else:
        others = {
            other: _worse(evidence, rank, ranks[chosen], dtype=chosen.dtype)
            for other, rank in ranks.items()
            if other != chosen
        }
        choice = Recommendation(
            **chosen.as_fields(Recommendation),
            target=device.target,
            reasons=_reasons(evidence, chosen, device=device),
            rejected=rejected({**excluded, **others}),
            snippets=snippets(evidence, chosen),
            confidence=Confidence.PREDICTED,
        )
    return completed(evidence, choice, chosen=chosen, device=device)


def _why_not(evidence: Evidence, configuration: Configuration, *, device: Hardware) -> str | None:
    lacks, prediction = standing(evidence, configuration, device=device)
    if prediction.is_usable is False:
        return f"documented: {prediction.why}"
    beyond = evidence.measurements.checkpoint.out_of_float16_range
    if lacks is None and configuration.dtype is Dtype.FLOAT16 and beyond:
        return f"stored weights exceed float16's maximum: {beyond[0].name}"
    return lacks


def _may_overflow(evidence: Evidence, dtype: Dtype) -> bool:
    """Whether the dtype has less range than the one that the checkpoint is made for."""
    declared = evidence.measurements.model.deploy_dtype
    return dtype is Dtype.FLOAT16 and declared != Dtype.FLOAT16


def _worse(evidence: Evidence, rank: UnmeasuredRank, best: UnmeasuredRank, *, dtype: Dtype) -> str:
    declared = evidence.measurements.model.deploy_dtype
    if rank.does_not_fit and not best.does_not_fit:
        return "does not fit"
    if rank.is_slow and not best.is_slow:
        return "slower on this device"
    if rank.num_bytes > best.num_bytes:
        return f"twice the memory of {dtype}"
    if rank.may_overflow:
        return f"may overflow where {declared} does not; {dtype} has the range"
    return f"not the dtype that the checkpoint declares ({declared})"


def _reasons(evidence: Evidence, chosen: Configuration, *, device: Hardware) -> tuple[str, ...]:
    model = evidence.measurements.model
    prediction = predict(evidence, chosen)
    memory = fit(evidence.measurements, device=device, dtype=chosen.dtype)
    reasons = []
    if chosen.dtype == model.deploy_dtype:
        reasons.append(f"the checkpoint declares {chosen.dtype}")
    elif _may_overflow(evidence, chosen.dtype):
        reasons.append(
            f"the checkpoint declares {model.deploy_dtype}; whether {chosen.dtype} has enough "
            "range is not known"
        )
    elif not chosen.dtype.is_reference:
        reasons.append(
            f"the checkpoint declares {model.deploy_dtype}; {chosen.dtype} has the same range, but "
            "how much precision it loses is not known"
        )
    if prediction.verdict is not None and not chosen.dtype.is_reference:
        reasons.append(prediction.why)
    if chosen.dtype.is_reference and device.float32_cost and device.float32_cost > 1:
        reasons.append(
            f"matrix products up to {device.float32_cost:g} times slower than in 16 bits"
        )
    reasons += filter(None, (does_not_fit(memory), fits_words(memory)))
    reasons += device.assumptions
    return (*reasons, "predicted: nothing was run")
