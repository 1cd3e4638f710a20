"""Which of the measured configurations to use on a device, and why not the others.

**Idea.** Every measured configuration gets a rank, a tuple that is compared from left to right:
what cannot be used at all is left out before, then size (16 bits before 32), then the verdict
(safe before low headroom before absorbed), then the dtype, then the attention implementation
(fused before eager, which writes an N x N matrix). The first of the order is recommended, all
others are rejected, each with the first entry of its rank that is worse, in words.

Between float16 and bfloat16 both ways are right somewhere. float16 keeps three more bits of every
value and is what a GPU without native bfloat16 computes; bfloat16 has the range of float32. So
float16 is chosen where bfloat16 is not native; elsewhere only if it is measurably closer to
float32 and has range to spare (``thresholds.PREFER_FLOAT16``).

**Assumptions.** The verdicts hold on the device advised for. They were measured on one device,
and range and rounding carry over to another as far as both round alike; kernels do not. Hence
``predicted`` on every device but the one measured.

**What it cannot see.** Speed, memory of the KV cache, kernels that accumulate in float16, prompts
that were not tried. It recommends nothing that was not measured, and never clamps: a clamped value
is another value (Gemma-3-12b, clamped: gsm8k 0.874 -> 0.647,
https://github.com/huggingface/transformers/pull/36832).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from precheck.judge import checkpoint, hardware
from precheck.judge.hardware import Bfloat16, Hardware
from precheck.judge.ranking import VERDICT_WORDS, gravest_runs, rank_of, why_not, worse
from precheck.records.finding import Confidence, Verdict
from precheck.records.loss import loss
from precheck.records.precision import Accumulation, Arithmetic, Configuration, Dtype
from precheck.records.quantities import bits, listed, magnitude
from precheck.records.report import Recommendation, Rejected
from precheck.records.tightest import tightest

if TYPE_CHECKING:
    from precheck.judge.evidence import Evidence
    from precheck.records.report import Run


def recommend(evidence: Evidence, *, device: Hardware) -> Recommendation:
    """What to use on this device, of what was measured."""
    every = gravest_runs(evidence)
    # sums in float16 are a property of a kernel that nobody chooses: a warning (PC109), no choice
    runs = {c: run for c, run in every.items() if c.accumulation is Accumulation.FLOAT32}
    broken = _why_nothing(evidence)
    excluded = {c: why for c, run in runs.items() if (why := why_not(run, device))}
    if broken is not None:
        excluded = dict.fromkeys(runs, "the checkpoint itself is broken")
    ranks = {
        configuration: rank_of(evidence, run, device=device, runs=runs)
        for configuration, run in runs.items()
        if configuration not in excluded
    }
    chosen = min(ranks, key=ranks.__getitem__, default=None)
    if chosen is None:
        return Recommendation(
            dtype=None,
            attn_implementation=None,
            target=device.target,
            reasons=(broken or _nothing_left(device),),
            rejected=_rejected(excluded),
            snippets={},
            confidence=_confidence(evidence, device),
        )
    others = {
        configuration: excluded.get(configuration) or worse(configuration, chosen, ranks=ranks)
        for configuration in runs
        if configuration != chosen
    }
    return Recommendation(
        dtype=chosen.dtype,
        attn_implementation=chosen.attn_implementation,
        target=device.target,
        reasons=_reasons(evidence, runs[chosen], device=device),
        rejected=_rejected(others),
        snippets=_snippets(evidence, chosen),
        confidence=_confidence(evidence, device),
    )


def _rejected(why: dict[Configuration, str]) -> tuple[Rejected, ...]:
    return tuple(
        Rejected(dtype=c.dtype, attn_implementation=c.attn_implementation, why=reason)
        for c, reason in why.items()
    )


def _why_nothing(evidence: Evidence) -> str | None:
    """Why no configuration of this checkpoint can be recommended, if that is so."""
    audit = evidence.measurements.checkpoint
    if checkpoint.has_random_parameters(audit):
        names = audit.missing + audit.mismatched
        return f"newly initialised parameters make the outputs random: {listed(names)}"
    if audit.nonfinite:
        return f"stored weights are not finite: {listed(tuple(f.name for f in audit.nonfinite))}"
    if evidence.broken_references:
        return "the model is not finite in float32, so no dtype can be right"
    return None


def _reasons(evidence: Evidence, run: Run, *, device: Hardware) -> tuple[str, ...]:
    measured = evidence.measurements
    figures = loss(run).sentence
    tight = tightest(measured.headroom, run.configuration)
    longest = measured.coverage.longest_probe_tokens
    reasons = [f"{VERDICT_WORDS[run.verdict]}{f': {run.reason}' if run.reason else ''}"]
    if run.verdict is not Verdict.ABSORBED and figures and run.dtype is not Dtype.FLOAT32:
        reasons.append(figures)
    if tight is not None and run.verdict is Verdict.SAFE and run.dtype is Dtype.FLOAT16:
        reasons.append(
            f"{bits(tight[1])} bits of headroom: at most {magnitude(tight[0].abs_max)} in "
            f"{tight[0].module}"
        )
    if run.dtype is Dtype.FLOAT32:
        reasons.append(_why_float32(device))
    elif device.kind == "cpu":
        reasons.append(_why_half_on_a_cpu(run))
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


def _why_float32(device: Hardware) -> str:
    if device.bfloat16 is Bfloat16.EMULATED:
        return f"no float16 configuration holds, and {device.compute_capability} has no bfloat16"
    return "no 16-bit configuration that was measured holds"


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
    if kind != device.kind:
        return Confidence.PREDICTED
    if kind != "cuda":
        return Confidence.MEASURED
    found = [each for each in evidence.measurements.environment.devices if each.kind == kind]
    used = found[int(index or 0)] if int(index or 0) < len(found) else None
    same = used is not None and hardware.of(used).compute_capability == device.compute_capability
    return Confidence.MEASURED if same else Confidence.PREDICTED


def _snippets(evidence: Evidence, configuration: Configuration) -> dict[str, str]:
    """Code to paste, by the library it is for."""
    model = evidence.measurements.model
    causal = model.architecture.endswith("ForCausalLM")
    loader = "AutoModelForCausalLM" if causal else model.architecture
    # a built-in model is a folder once it is saved: precheck demo NAME -o ./NAME
    path = model.id.replace("demo:", "./", 1) if model.id.startswith("demo:") else model.id
    name = json.dumps(path, ensure_ascii=False)
    return {
        "transformers": (
            f"model = {loader}.from_pretrained(\n"
            f"    {name}, dtype=torch.{configuration.dtype}, "
            f"attn_implementation={json.dumps(configuration.attn_implementation)}\n)"
        )
    }
