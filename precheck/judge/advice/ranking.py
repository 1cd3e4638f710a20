"""The order of usable configurations on a device, and in words what is wrong with the others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.attention import implementation, preference
from precheck.facts.hardware import Support, is_slow
from precheck.judge.devices.fit import does_not_fit, fit
from precheck.judge.devices.sdpa import MATH_KERNEL, falls_to_math
from precheck.judge.thresholds import PREFER_FLOAT16, SAME_KL_DIVERGENCE
from precheck.records.finding import USABLE, Verdict
from precheck.records.loss import loss
from precheck.records.precision import Dtype
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration
    from precheck.records.report import Run

_GRAVITY = {verdict: gravity for gravity, verdict in enumerate(reversed(Verdict))}

VERDICT_WORDS = {
    Verdict.FAILED: "could not be run",
    Verdict.OVERFLOW: "overflows",
    Verdict.DEGRADED: "loses accuracy",
    Verdict.ABSORBED: "absorbs an overflow",
    Verdict.LOW_HEADROOM: "has little headroom",
    Verdict.SAFE: "safe",
}


class Rank(NamedTuple):
    """How good a usable run is; smaller is better, compared from left to right."""

    does_not_fit: bool
    is_slow: bool
    """Float32 is faster there."""
    num_bytes: int
    gravity: int
    dtype_order: int
    attention_order: int
    name: str
    """So that a tie has an order as well."""
    why_it_does_not_fit: str
    """Empty where it fits, or where that is not known."""


def gravest_runs(evidence: Evidence) -> dict[Configuration, Run]:
    """One run of each configuration: the gravest, where it was measured in several ways."""
    gravest: dict[Configuration, Run] = {}
    for run in evidence.runs:
        other = gravest.get(run.configuration)
        if other is None or _GRAVITY[run.verdict] > _GRAVITY[other.verdict]:
            gravest[run.configuration] = run
    return gravest


def why_not(evidence: Evidence, run: Run, device: Hardware) -> str | None:
    """Why this run's configuration cannot be used on the device at all."""
    if run.verdict not in USABLE:
        return f"{VERDICT_WORDS[run.verdict]}; {run.reason}"
    where = device.compute_capability or device.name
    if device.support(run.dtype) is Support.NONE:
        return f"{device.name} has no {run.dtype}"
    if run.dtype is Dtype.BFLOAT16 and device.emulates_bfloat16:
        attention = evidence.measurements.model.attention
        is_math = run.attn_implementation == "sdpa" and falls_to_math(device, run.dtype, attention)
        math = f", and sdpa uses {MATH_KERNEL}" if is_math else ""
        return f"bfloat16 is only emulated on {where}{math}"
    attention_row = implementation(run.attn_implementation)
    if attention_row is not None and not attention_row.runs_on(device):
        return f"{run.attn_implementation} is not known to run on {where}"
    return None


def rank_of(
    evidence: Evidence, run: Run, *, device: Hardware, runs: dict[Configuration, Run]
) -> Rank:
    """The rank of a usable run on this device, among all runs by configuration."""
    memory = fit(evidence.measurements, device=device, dtype=run.dtype)
    why_it_does_not_fit = does_not_fit(memory) or ""
    return Rank(
        does_not_fit=bool(why_it_does_not_fit),
        is_slow=is_slow(run.dtype, device),
        num_bytes=run.dtype.limits.num_bytes,
        gravity=_GRAVITY[run.verdict],
        dtype_order=_dtype_order(evidence, run, device=device, runs=runs),
        attention_order=preference(run.attn_implementation),
        name=run.name,
        why_it_does_not_fit=why_it_does_not_fit,
    )


def _dtype_order(
    evidence: Evidence, run: Run, *, device: Hardware, runs: dict[Configuration, Run]
) -> int:
    """0 for float16 that is better than bfloat16 here, 1 for bfloat16, 2 for other float16."""
    if run.dtype is not Dtype.FLOAT16:
        return 1
    other = runs.get(replace(run.configuration, dtype=Dtype.BFLOAT16))
    if other is None or why_not(evidence, other, device):
        return 0
    tight = tightest(evidence.measurements.headroom, run.configuration)
    has_range = tight is None or tight[1] >= PREFER_FLOAT16.value
    return 0 if has_range and _is_closer(run, other) else 2


def _is_closer(run: Run, other: Run) -> bool:
    """Whether a run is measurably closer to float32 than the other."""
    divergence, other_divergence = loss(run).kl_divergence, loss(other).kl_divergence
    if divergence is None or other_divergence is None:
        return False
    return divergence < other_divergence and other_divergence > SAME_KL_DIVERGENCE.value


def worse(other: Configuration, chosen: Configuration, *, ranks: dict[Configuration, Rank]) -> str:
    """The first entry of its rank that is worse than the chosen one's, in words."""
    rank, best = ranks[other], ranks[chosen]
    if rank.does_not_fit and not best.does_not_fit:
        return rank.why_it_does_not_fit
    if rank.is_slow and not best.is_slow:
        return f"usable, but slow there: {other.dtype} is not native, {chosen.dtype} is faster"
    if rank.num_bytes > best.num_bytes:
        return f"twice the memory of {chosen.dtype}, and not needed"
    if rank.gravity > best.gravity:
        verdict = next(v for v, gravity in _GRAVITY.items() if gravity == rank.gravity)
        return f"{VERDICT_WORDS[verdict]}; {chosen} does not"
    if rank.dtype_order > best.dtype_order:
        return _worse_dtype(other.dtype, chosen.dtype)
    return _worse_attention(other.attn_implementation, chosen.attn_implementation)


def _worse_attention(other: str, chosen: str) -> str:
    if other == "eager":
        return f"usable, but writes out the scores, which {chosen} does not"
    return f"usable, and no better than {chosen}"


def _worse_dtype(other: Dtype, chosen: Dtype) -> str:
    if other is Dtype.FLOAT16:
        return f"usable; {chosen} has more range and is not measurably further from float32"
    return f"usable, but further from float32 than {chosen}"
