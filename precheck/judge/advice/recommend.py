"""Which of the measured configurations to use on a device, and why not the others.

**Idea.** Every measured configuration gets a rank, a tuple that is compared from left to right:
what cannot be used at all is left out before, then whether it fits into the device's memory, then
whether float32 would be faster there, then size (16 bits before 32), then the verdict (safe before
low headroom before absorbed), then the dtype, then the attention implementation (fused before
eager, which materialises an N x N matrix). The first of the order is recommended, all others are
rejected, each with the first entry of its rank that is worse, in words.

Neither float16 nor bfloat16 is always better. float16 has three more bits of precision and is what
a GPU without native bfloat16 computes in; bfloat16 has the range of float32. So float16 is chosen
where bfloat16 is not native; elsewhere only if it is measurably closer to float32 and has range to
spare (``thresholds.PREFER_FLOAT16``).

The choice comes with the memory that the model needs on the device, the attention implementations
that were not run, what engines would do by default, and smaller remedies. None of these is chosen:
what was not measured is shown as predicted.

**Assumptions.** The verdicts are assumed to hold on the device that the advice is for. They were
measured on one device; range and rounding carry over to another that rounds alike, kernels do not.
Hence ``predicted`` on every device but the one measured.

**What it cannot see.** Throughput, kernels that accumulate in float16, prompts that were not tried.
It never clamps: a clamped value is another value (Gemma-3-12b, clamped: gsm8k 0.874 -> 0.647,
https://github.com/huggingface/transformers/pull/36832).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.facts import devices
from precheck.facts.hardware import Hardware, Support
from precheck.judge.advice.ranking import gravest_runs, rank_of, why_not, worse
from precheck.judge.advice.remedies import remedies
from precheck.judge.devices.attention_options import attention_options
from precheck.judge.devices.engines import engine_advice
from precheck.judge.devices.fit import does_not_fit, fit, fits_words
from precheck.judge.findings import checkpoint
from precheck.records.advice import Recommendation, Rejected
from precheck.records.attention import as_argument
from precheck.records.configuration import Configuration
from precheck.records.finding import VERBS, Confidence, Verdict
from precheck.records.loss import loss
from precheck.records.precision import Arithmetic, Dtype
from precheck.records.quantities import bits, listed, magnitude
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from precheck.judge.evidence import Evidence
    from precheck.records.report import Run


_UNKNOWN_DTYPE = Configuration(dtype=Dtype.BFLOAT16, attn_implementation="")
"""What attention is advised for where the dtype that a plain load gives is not measured."""


def recommend(evidence: Evidence, *, device: Hardware) -> Recommendation:
    """What to use on this device, of what was measured."""
    # sums in float16 are a property of a kernel that nobody chooses: a warning (PC109), no choice
    runs = {
        configuration: run
        for configuration, run in gravest_runs(evidence).items()
        if configuration.is_plain
    }
    broken = why_nothing(evidence)
    if broken is None:
        reasons = {c: why_not(evidence, run, device) for c, run in runs.items()}
        excluded = {c: reason for c, reason in reasons.items() if reason}
    else:
        excluded = dict.fromkeys(runs, "the checkpoint itself is broken")
    ranks = {
        configuration: rank_of(evidence, run, device=device, runs=runs)
        for configuration, run in runs.items()
        if configuration not in excluded
    }
    chosen = min(ranks, key=ranks.__getitem__, default=None)
    if chosen is None:
        choice = Recommendation(
            dtype=None,
            attn_implementation=None,
            target=device.target,
            reasons=(broken or _nothing_left(device),),
            rejected=rejected(excluded),
            snippets={},
            confidence=_confidence(evidence, device),
        )
    else:
        others = {
            configuration: excluded.get(configuration)
            or worse(configuration, chosen, ranks=ranks, runs=runs)
            for configuration in runs
            if configuration != chosen
        }
        choice = Recommendation(
            **chosen.as_fields(Recommendation),
            target=device.target,
            reasons=_reasons(evidence, runs[chosen], device=device),
            rejected=rejected(others),
            snippets=snippets(evidence, chosen),
            confidence=_confidence(evidence, device),
        )
    return completed(evidence, choice, chosen=chosen, device=device)


def completed(
    evidence: Evidence,
    choice: Recommendation,
    *,
    chosen: Configuration | None,
    device: Hardware,
) -> Recommendation:
    """The choice with what comes with it: memory, attention, engines, smaller remedies.

    Args:
        evidence: the scan.
        choice: the recommendation so far.
        chosen: the configuration that it recommends; None where it recommends nothing.
        device: that the advice is for.
    """
    model = evidence.measurements.model
    is_broken = chosen is None and why_nothing(evidence) is not None
    is_live = model.id == model.architecture  # a module of the caller's: nothing to serve
    engines = (
        () if is_broken or is_live else engine_advice(evidence, device=device, recommended=chosen)
    )
    commands = {
        advice.engine: advice.command
        for advice in engines
        if advice.command is not None and advice.engine != "transformers" and chosen is not None
    }
    return replace(
        choice,
        snippets={**choice.snippets, **commands},
        fits=tuple(fit(evidence.measurements, device=device, dtype=dtype) for dtype in Dtype),
        attention=attention_options(
            evidence,
            chosen or model.deployed or _UNKNOWN_DTYPE,
            device=device,
            is_measured_there=choice.confidence == Confidence.MEASURED,
        ),
        engines=engines,
        remedies=() if is_broken else remedies(evidence, device=device, chosen=chosen),
    )


def rejected(reasons: dict[Configuration, str]) -> tuple[Rejected, ...]:
    """Why each configuration was not chosen, as the report has it."""
    return tuple(
        Rejected(**configuration.as_fields(Rejected), why=reason)
        for configuration, reason in reasons.items()
    )


def why_nothing(evidence: Evidence) -> str | None:
    """Why no configuration of this checkpoint can be recommended, if that is so."""
    audit = evidence.measurements.checkpoint
    if checkpoint.has_random_parameters(audit):
        names = audit.missing + audit.mismatched
        return f"newly initialised parameters make the outputs random: {listed(names)}"
    if audit.unscaled or audit.unread_scales:
        names = audit.unscaled or audit.unread_scales
        return f"weights are used without their scales: {listed(names)}"
    if audit.zero_scales:
        return f"weights are zero because their scales are: {listed(audit.zero_scales)}"
    if audit.nonfinite:
        names = tuple(fault.name for fault in audit.nonfinite)
        return f"stored weights are not finite: {listed(names)}"
    if evidence.broken_references:
        return "the model's output is not finite in float32, so no dtype can work"
    return None


def _reasons(evidence: Evidence, run: Run, *, device: Hardware) -> tuple[str, ...]:
    measurements = evidence.measurements
    figures = loss(run).sentence
    tight = tightest(measurements.headroom, run.configuration)
    longest = measurements.coverage.longest_probe_tokens
    verdict = VERBS[run.verdict].removeprefix("is ")
    reasons = [f"{verdict}{f': {run.reason}' if run.reason else ''}"]
    if run.verdict is not Verdict.ABSORBED and figures and not run.dtype.is_reference:
        reasons.append(figures)
    if tight is not None and run.verdict is Verdict.SAFE and run.dtype is Dtype.FLOAT16:
        reasons.append(
            f"{bits(tight[1])} bits of headroom: at most {magnitude(tight[0].abs_max)} in "
            f"{tight[0].module}"
        )
    if run.dtype.is_reference:
        reasons.append(_why_float32(evidence, device))
    elif device.kind == "cpu":
        reasons.append(_why_half_on_a_cpu(run))
    memory = fit(measurements, device=device, dtype=run.dtype)
    reasons += filter(None, (does_not_fit(memory), fits_words(memory)))
    reasons += device.assumptions
    reasons.append(f"not tested beyond {longest:,} tokens")
    if _confidence(evidence, device) is Confidence.PREDICTED:
        where = device.compute_capability or device.name
        reasons.append(f"measured on {_measured_on(evidence)}, predicted for {where}")
    return tuple(reasons)


def _why_half_on_a_cpu(run: Run) -> str:
    if run.arithmetic is Arithmetic.NATIVE:
        return "half the memory"
    return (
        f"half the memory, but slow here: this CPU has no {run.dtype} arithmetic (the scan's "
        "products were computed in float32 and rounded)"
    )


def _why_float32(evidence: Evidence, device: Hardware) -> str:
    usable = {
        run.dtype
        for run in evidence.runs
        if not run.dtype.is_reference and why_not(evidence, run, device) is None
    }
    if usable:
        return f"{' and '.join(sorted(usable))} would be slower here: not native"
    cost = "twice the memory"
    if device.float32_cost and device.float32_cost > 1:
        cost += f", matrix products up to {device.float32_cost:g} times slower"
    if device.bfloat16 in {Support.EMULATED, Support.NONE}:
        where = device.compute_capability or device.name
        return f"{_why_no_float16(evidence)}, and {where} has no bfloat16; float32 costs {cost}"
    return f"no measured 16-bit configuration is usable; float32 costs {cost}"


def _why_no_float16(evidence: Evidence) -> str:
    verdicts = {run.verdict for run in evidence.runs if run.dtype is Dtype.FLOAT16}
    effect = "overflows" if verdicts == {Verdict.OVERFLOW} else "is not usable"
    return f"float16 {effect} in every configuration"


def _nothing_left(device: Hardware) -> str:
    return (
        f"no measured configuration can be used on {device.name}; what was not measured is not "
        "recommended"
    )


def _measured_on(evidence: Evidence) -> str:
    return evidence.runs[0].device if evidence.runs else "nothing"


def _confidence(evidence: Evidence, device: Hardware) -> Confidence:
    """Measured only if the runs were on a device of this very kind."""
    kind, _, index = _measured_on(evidence).partition(":")
    if kind != ("cuda" if device.kind == "rocm" else device.kind):
        return Confidence.PREDICTED
    if kind != "cuda":
        return Confidence.MEASURED
    same_kind = [
        present
        for present in evidence.measurements.environment.devices
        if present.kind == device.kind
    ]
    used = same_kind[int(index or 0)] if int(index or 0) < len(same_kind) else None
    is_same = used is not None and devices.of(used).compute_capability == device.compute_capability
    return Confidence.MEASURED if is_same else Confidence.PREDICTED


def snippets(evidence: Evidence, configuration: Configuration) -> dict[str, str]:
    """Code to paste, by the library it is for."""
    model = evidence.measurements.model
    return {
        "transformers": (
            f"model = {model.auto_class}.from_pretrained(\n"
            f"    {model.load_arguments}, dtype=torch.{configuration.dtype}, "
            f"attn_implementation={json.dumps(as_argument(configuration.attn_implementation))}\n)"
        )
    }
