"""The configurations that would be deployed, each on each device: may it be, and what happens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.facts.deployed_formats import on_device
from precheck.judge.devices.standing import lacks_attention, lacks_dtype
from precheck.judge.evidence import Evidence
from precheck.judge.prediction import predict
from precheck.judge.targets import targets
from precheck.records.finding import USABLE, VERBS, Verdict
from precheck.records.mechanism import MECHANISMS
from precheck.records.outcomes.gate import Deployment
from precheck.records.precision import Dtype
from precheck.records.quantities import listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.facts.hardware import Hardware
    from precheck.records.configuration import Configuration
    from precheck.records.report import Report, Run


_EXPLAINS = {
    Verdict.FAILED: frozenset({"PC402"}),
    Verdict.OVERFLOW: frozenset(
        {"PC111", "PC602", "PC603", *(row.code for row in MECHANISMS.values())}
    ),
    Verdict.DEGRADED: frozenset({"PC201", "PC602", "PC603"}),
    Verdict.ABSORBED: frozenset({"PC112"}),
    Verdict.LOW_HEADROOM: frozenset({"PC114"}),
}
"""The findings that say why a run has its verdict."""
_ODD_INPUTS = "PC204"
"""Accuracy that is lost on inputs such as emoji or punctuation only."""


def deployments(
    report: Report, *, require: tuple[Configuration, ...], is_strict: bool
) -> Iterator[Deployment]:
    """What is required, else what a plain load would give, on every device named or found.

    Args:
        report: a judged scan, or one that ran nothing.
        require: an empty attention implementation is the model's default.
        is_strict: what may become wrong (little headroom, an absorbed overflow) does not pass.
    """
    rejected = frozenset(Verdict) - ({Verdict.SAFE} if is_strict else USABLE)
    devices = targets(report)
    evidence = Evidence(measurements=report.measurements, runs=report.runs, devices=devices)
    deployed = () if report.model.deployed is None else (report.model.deployed,)
    for configuration in require or deployed:
        default = report.model.default_attn_implementation or ""
        whole = configuration.with_attention(configuration.attn_implementation or default)
        judged = (
            _documented(evidence, whole, rejected=rejected)
            if report.is_static
            else _measured(report, whole, rejected=rejected, is_strict=is_strict)
        )
        for device in devices:
            yield _on(device, judged, evidence=evidence)
        if not devices:
            yield judged


def _on(device: Hardware, judged: Deployment, *, evidence: Evidence) -> Deployment:
    """The same on a device, which may lack the dtype or the attention implementation."""
    there = replace(judged, device=None if device.kind == "cpu" else device.name)
    ran_there = any(run.device.startswith(device.kind) for run in evidence.runs)
    lacks = lacks_dtype(evidence, judged.configuration, device=device)
    if lacks is None and not ran_there:
        lacks = lacks_attention(evidence, judged.configuration, device=device)
    there = _in_formats(device, there)
    if lacks is None or not judged.holds:
        return there
    return replace(there, holds=False, words=f"should not be used: {lacks}")


def _in_formats(device: Hardware, judged: Deployment) -> Deployment:
    """What becomes of its formats on the device: some are refused there, or computed otherwise."""
    where = device.compute_capability or device.name
    special = {
        name: row
        for name in judged.configuration.formats
        if (row := on_device(name, device.compute_capability)) is not None
    }
    told = {name: f"{name} on {where}: {row.words}" for name, row in special.items()}
    refused = next((name for name, row in special.items() if row.is_refused), None)
    if refused is not None and judged.holds:
        words = f"should not be used: {told.pop(refused)}"
        judged = replace(judged, holds=False, words=words)
    return replace(judged, note="; ".join(told.values()))


def _documented(
    evidence: Evidence, configuration: Configuration, *, rejected: frozenset[Verdict]
) -> Deployment:
    """Nothing was run: what is documented of the family, and weights beyond float16."""
    prediction = predict(evidence, configuration)
    holds = prediction.verdict not in rejected
    words = "has no known problem (static check only, not measured)"
    if not holds and prediction.verdict is not None:
        words = f"{VERBS[prediction.verdict]}, documented: {prediction.why}"
    beyond = evidence.measurements.checkpoint.out_of_float16_range
    if holds and configuration.dtype is Dtype.FLOAT16 and beyond:
        holds, words = False, f"overflows: {beyond[0].name} exceeds float16's maximum"
    return Deployment(
        configuration=configuration,
        device=None,
        verdict=prediction.verdict,
        holds=holds,
        words=words,
    )


def _measured(
    report: Report,
    configuration: Configuration,
    *,
    rejected: frozenset[Verdict],
    is_strict: bool,
) -> Deployment:
    """The gravest of its runs; sums in float16 may be one of them."""
    runs = [
        _of_run(report, run, rejected=rejected, is_strict=is_strict)
        for run in _matching(report, configuration)
    ]
    if runs:
        gravest = min(runs, key=lambda run: (run.holds, (run.verdict or Verdict.SAFE).order))
        asked = configuration if configuration.attn_implementation else gravest.configuration
        return replace(gravest, configuration=asked)
    return Deployment(
        configuration=configuration,
        device=None,
        verdict=None,
        holds=False,
        words="was not measured",
    )


def _matching(report: Report, configuration: Configuration) -> tuple[Run, ...]:
    """Its runs, by the attention asked for or used; whatever the attention if none is known."""
    if not configuration.attn_implementation:
        return tuple(
            run for run in report.runs if run.configuration.with_attention("") == configuration
        )
    return tuple(run for run in report.runs if configuration in run.configurations)


def _of_run(
    report: Report, run: Run, *, rejected: frozenset[Verdict], is_strict: bool
) -> Deployment:
    holds, words = run.verdict not in rejected, run.outcome
    findings = report.findings_of(run)
    explaining = [row for row in findings if row.code in _EXPLAINS.get(run.verdict, ())]
    contradiction = _contradiction(run)
    if contradiction is not None:
        holds, words = False, f"{VERBS[run.verdict]}, but {contradiction}: scan again"
    elif not holds and explaining and all(finding.accepted for finding in explaining):
        codes = listed(tuple(dict.fromkeys(finding.code for finding in explaining)))
        holds, words = True, f"{VERBS[run.verdict]}, accepted by the baseline ({codes})"
    elif holds and is_strict:
        for finding in findings:
            if finding.code == _ODD_INPUTS and finding.accepted is None:
                holds, words = False, f"{VERBS[run.verdict]}, but: {finding.message.rstrip('.')}"
    return Deployment(
        configuration=run.configuration, device=None, verdict=run.verdict, holds=holds, words=words
    )


def _contradiction(run: Run) -> str | None:
    """What a scan cannot have written, where a run is said to give answers; saved reports may."""
    if run.verdict not in USABLE | {Verdict.DEGRADED}:
        return None
    if run.failure is not None:
        return "it failed"
    if not run.layers:
        return "no layer was measured"
    if run.reaches_output or run.reference_nonfinite:
        return "its output is not finite"
    if run.first_overflow is not None and not run.first_overflow.absorbed:
        return "an overflow was not absorbed"
    return None
