"""Measurements in, a judged report out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts import devices
from precheck.judge.advice.recommend import recommend
from precheck.judge.advice.static import recommend_unmeasured
from precheck.judge.evidence import Evidence
from precheck.judge.findings.rules import findings
from precheck.judge.targets import found
from precheck.judge.verdict import verdict
from precheck.records.report import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.report import Measurements


def judge(measurements: Measurements, *, gpus: tuple[str, ...] = (), version: str) -> Report:
    """The report on these measurements.

    Args:
        measurements: what was measured, complete or not.
        gpus: devices that the advice is for, the most important first; without any, the
            accelerator that was found, else this CPU and the two usual kinds of GPU.
        version: of precheck, for the report.

    Raises:
        UsageError: a GPU name that is not known.
    """
    targets = tuple(devices.find(name) for name in gpus) or found(measurements.environment)
    evidence = Evidence(
        measurements=measurements,
        runs=tuple(
            verdict(trace, runs=measurements.runs, headroom=measurements.headroom)
            for trace in measurements.runs
        ),
        devices=targets,
    )
    is_cpu_alone = not gpus and [target.kind for target in targets] == ["cpu"]
    usual = devices.usual_gpus() if is_cpu_alone else ()
    advise = recommend_unmeasured if measurements.is_static else recommend
    first, *rest = (advise(evidence, device=device) for device in (*targets, *usual))
    return Report(
        precheck_version=version,
        complete=measurements.complete,
        incomplete_reason=measurements.incomplete_reason,
        seed=measurements.seed,
        options=measurements.options,
        model=measurements.model,
        checkpoint=measurements.checkpoint,
        environment=measurements.environment,
        probes=measurements.probes,
        coverage=measurements.coverage,
        runs=evidence.runs,
        headroom=measurements.headroom,
        findings=findings(evidence),
        recommendation=first,
        other_recommendations=tuple(rest),
        is_static=measurements.is_static,
        key_values=measurements.key_values,
        operands=measurements.operands,
        layer_bounds=measurements.layer_bounds,
    )


def judge_again(report: Report, *, gpus: Sequence[str]) -> Report:
    """A saved report judged for other devices, by the rules and tables of this version.

    Args:
        report: its runs, figures and facts stay.
        gpus: devices to advise for, the first one foremost.

    Raises:
        UsageError: a GPU name that is not known.
    """
    return judge(report.measurements, gpus=tuple(gpus), version=report.precheck_version)
