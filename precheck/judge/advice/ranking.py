"""The order of usable configurations on a device, and what is wrong with the others, in words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.attention import preference
from precheck.facts.hardware import is_slow
from precheck.judge.advice.closeness import distances
from precheck.judge.devices.fit import does_not_fit, fit
from precheck.judge.devices.standing import lacks_attention, lacks_dtype
from precheck.judge.thresholds import PREFER_FLOAT16
from precheck.records.finding import USABLE, VERBS, Verdict
from precheck.records.precision import Dtype
from precheck.records.quantities import bits
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration
    from precheck.records.report import Run


class Rank(NamedTuple):
    """How good a usable run is; smaller is better, compared from left to right."""

    does_not_fit: bool
    is_slow: bool
    """Float32 is faster there."""
    num_bytes: int
    gravity: int
    dtype_order: int
    """0 for float16 that is better than bfloat16 here, 1 for bfloat16, 2 for other float16."""
    attention_order: int
    name: str
    """So that a tie has an order as well."""
    why_it_does_not_fit: str
    """Empty where it fits, or where that is not known."""
    why_bfloat16: str
    """Why bfloat16 is preferred to this float16; empty where it is not."""


def gravest_runs(evidence: Evidence) -> dict[Configuration, Run]:
    """One run of each configuration: the gravest, where it was measured in several ways."""
    gravest: dict[Configuration, Run] = {}
    for run in evidence.runs:
        other = gravest.get(run.configuration)
        if other is None or run.verdict.order < other.verdict.order:
            gravest[run.configuration] = run
    return gravest


def why_not(evidence: Evidence, run: Run, device: Hardware) -> str | None:
    """Why this run's configuration cannot be used on the device at all."""
    if run.verdict not in USABLE:
        return f"{VERBS[run.verdict]}; {run.reason}"
    dtype = lacks_dtype(evidence, run.configuration, device=device)
    attention = lacks_attention(evidence, run.configuration, device=device)
    return dtype or (f"{run.attn_implementation} {attention}" if attention else None)


def rank_of(
    evidence: Evidence, run: Run, *, device: Hardware, runs: dict[Configuration, Run]
) -> Rank:
    """The rank of a usable run on this device, among all runs by configuration."""
    memory = fit(evidence.measurements, device=device, dtype=run.dtype)
    why_it_does_not_fit = does_not_fit(memory) or ""
    why_bfloat16 = _why_bfloat16(evidence, run, device=device, runs=runs) or ""
    float16_order = 2 if why_bfloat16 else 0
    return Rank(
        does_not_fit=bool(why_it_does_not_fit),
        is_slow=is_slow(run.dtype, device),
        num_bytes=run.dtype.limits.num_bytes,
        gravity=-run.verdict.order,
        dtype_order=float16_order if run.dtype is Dtype.FLOAT16 else 1,
        attention_order=preference(run.attn_implementation),
        name=run.name,
        why_it_does_not_fit=why_it_does_not_fit,
        why_bfloat16=why_bfloat16,
    )


def _why_bfloat16(
    evidence: Evidence, run: Run, *, device: Hardware, runs: dict[Configuration, Run]
) -> str | None:
    """Why bfloat16 with the same attention is preferred to this run, in the two numbers of it."""
    other = runs.get(replace(run.configuration, dtype=Dtype.BFLOAT16))
    if run.dtype is not Dtype.FLOAT16 or other is None or why_not(evidence, other, device):
        return None
    headroom = evidence.measurements.headroom
    tight, wide = (tightest(headroom, each.configuration) for each in (run, other))
    if tight is not None and tight[1] < PREFER_FLOAT16.value:
        has = "has more" if wide is None else f"has {bits(wide[1])}"
        return f"{bits(tight[1])} bits of headroom, {other.dtype} {has}"
    figures = distances(run, other)
    if figures is None:
        return f"{other.dtype} has more range, and it is not known which is closer to float32"
    if figures.is_closer:
        return None
    which = (
        "both are equally close to float32"
        if figures.are_alike
        else f"{run.dtype} is no closer to float32"
    )
    return f"{other.dtype} has more range, and {which} ({figures.words})"


def worse(
    other: Configuration,
    chosen: Configuration,
    *,
    ranks: dict[Configuration, Rank],
    runs: dict[Configuration, Run],
) -> str:
    """The first entry of its rank that is worse than the chosen one's, in words."""
    rank, best = ranks[other], ranks[chosen]
    if rank.does_not_fit and not best.does_not_fit:
        return rank.why_it_does_not_fit
    if rank.is_slow and not best.is_slow:
        return f"works, but slow there: {other.dtype} is not native, {chosen.dtype} is faster"
    if rank.num_bytes > best.num_bytes:
        return f"takes twice the memory of {chosen.dtype}, and is not needed"
    if rank.gravity > best.gravity:
        return _worse_verdict(runs[other], chosen, why_bfloat16=rank.why_bfloat16)
    if rank.dtype_order > best.dtype_order:
        return _worse_dtype(runs[other], runs[chosen], why_bfloat16=rank.why_bfloat16)
    return _worse_attention(other.attn_implementation, chosen.attn_implementation)


def _worse_verdict(other: Run, chosen: Configuration, *, why_bfloat16: str) -> str:
    if other.verdict is Verdict.LOW_HEADROOM and why_bfloat16:
        return f"works; {why_bfloat16}"
    return f"{VERBS[other.verdict]}; {chosen} does not"


def _worse_attention(other: str, chosen: str) -> str:
    if other == "eager":
        return f"works, but materialises the attention matrix; {chosen} does not"
    return f"works, but is no better than {chosen}"


def _worse_dtype(other: Run, chosen: Run, *, why_bfloat16: str) -> str:
    if why_bfloat16:
        return f"works; {why_bfloat16}"
    figures = distances(other, chosen)
    if figures is None or figures.run <= figures.other:
        return f"works; {chosen.dtype} has three more bits of precision"
    return f"works, but is further from float32 ({figures.words})"
